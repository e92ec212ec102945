"""What several test files share: toy data sets, runs and networks, and the filling of golden weights."""
