"""What makes the pages: `pages` the links, `reference` the configuration's keys."""
