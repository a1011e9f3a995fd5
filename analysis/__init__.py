"""Reads a sweep's tables and writes what a paper needs: regressions, scaling laws, claims, tables, figures, a report.

Nothing here imports ray or torch. `analyze.analyze` does everything; each other module is one part of it and can
be called alone with data frames:

    sweep         the tables of a store, and which of their columns are tasks, metrics and hyperparameters
    statistics    rank correlations, residuals and cross-validation, of one sample or of thousands of resamples at once
    scaling_law   E + A / N^alpha + B / D^beta
    regressions   every task x metric x statistic, with bootstrap intervals
    trends        what one hyperparameter does with all others equal, with permutation intervals
    claims        hypotheses, by default the claims of the paper, each with an interval and a verdict
    tables        the paper's Tables 2-9 beside this sweep's
    figures       the paper's Figures 2-27
    report        one HTML page with all of it
    example       a simulated sweep of 108 cells, to see all of it without training anything
"""
