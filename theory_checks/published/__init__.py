"""What is published of the theory: power, predictive power, the pages."""
