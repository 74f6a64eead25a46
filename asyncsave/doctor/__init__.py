"""What is fine on a machine and in a folder, what is not, and what to do: small checks, each tried for real."""
