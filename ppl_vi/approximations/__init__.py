"""Approximations of a posterior from any system: draws by site name, with or without their log density."""
