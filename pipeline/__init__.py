"""The shell around gwm_model: the only code that knows Ray, buckets and MLflow."""
