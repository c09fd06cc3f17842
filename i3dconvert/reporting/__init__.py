"""What people look at: the report, its charts and its templates, and the benchmark that fills them."""
