"""Results of evaluations: files, statistics, comparisons, tables over rows and seeds, and pages."""
