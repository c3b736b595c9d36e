"""A run as one page of plots and images."""
