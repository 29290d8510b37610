"""The training mixture of MMEB-V2: published layouts -> pairs."""
