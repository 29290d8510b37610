"""A planted world, in which the truth is known (docs/method.md section 10)."""
