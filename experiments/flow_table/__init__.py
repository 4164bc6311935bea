"""Every flow of conf/flow on digits under one budget."""
