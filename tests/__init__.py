"""Tests, in the same three houses as the code."""
