"""A sweep's report: what its jobs say together (summary), pictures of it (figures, samples), and one page (page)."""
