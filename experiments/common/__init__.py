"""What several experiments share: budgets, results that are kept, columns of tables, options, configurations."""
