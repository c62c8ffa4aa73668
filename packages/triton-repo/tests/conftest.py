"""Settings of this package's tests."""

import os

from hypothesis import HealthCheck, settings

# No deadlines: a busy machine is not a failure. CI draws the same examples each time: a failure
# there belongs to the change under test.
settings.register_profile(
    "triton-repo",
    deadline=None,
    max_examples=150,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("triton-repo")
