"""flowdiff beside other libraries' flows: same data, same seconds, same measures."""
