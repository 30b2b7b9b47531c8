"""Changes to a JAX program that may explain where it parts from another: a file for each family of kinds."""
