"""Many runs over time on one page: points of run folders and benchmark files, steps in them, figures, the page."""
