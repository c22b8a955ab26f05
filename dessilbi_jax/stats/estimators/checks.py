"""Which of scikit-learn's checks cannot hold, and why."""

# By the estimator's name, as `sklearn.utils.estimator_checks.check_estimator` takes them.
EXPECTED_FAILED_CHECKS: dict[str, dict[str, str]] = {}
