"""How much worse a build answers than its source: next-token distributions on text, with confidence intervals."""
