"""`python -m experiments.plan`: what a stage will need, before it is started."""
