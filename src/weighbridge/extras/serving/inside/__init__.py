"""What runs inside a serving environment: of the standard library, torch and the server alone."""
