"""Settings of this package's tests."""

from hypothesis import HealthCheck, settings

# No deadlines: a busy machine is not a failure.
settings.register_profile(
    "triton-repo",
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("triton-repo")
