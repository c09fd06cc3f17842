"""The report, its charts and templates, and the benchmark."""
