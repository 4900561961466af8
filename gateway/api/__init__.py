"""The public routes. Only this package turns errors into HTTP."""
