"""The class is part of the package flowdiff."""
