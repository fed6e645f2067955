"""What is held against what: a structure against a plan and references, scales, memory."""
