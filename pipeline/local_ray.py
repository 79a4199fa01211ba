"""The environment of a Ray that a command starts itself: to be set before Ray is imported."""

import os

ENVIRONMENT = {
    # Without a mode, Ray 2.60 would turn token authentication on and leave ~/.ray/auth_token behind, which changes
    # how the next `ray start` behaves.
    "RAY_AUTH_MODE": "disabled",
    # In spite of its name, Ray's word for "this machine only" on Linux too: every port is on 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def keep_ray_to_this_machine(address: str | None) -> None:
    """Unless a cluster is joined, by `address` or RAY_ADDRESS; what the user has set stays."""
    if not (address or os.environ.get("RAY_ADDRESS")):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
