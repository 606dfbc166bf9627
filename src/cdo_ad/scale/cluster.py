"""Ray: a cluster that is there already, or one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cdo_ad.data.files import reason
from cdo_ad.errors import ConfigError, needs_extra
from cdo_ad.provenance import processors

__all__ = ["Resources", "cluster"]

OBJECT_STORE = 512 * 2**20
"""Bytes of memory that a Ray of our own shares between its processes; images never pass through it."""
ATTEMPTS = 3
"""A Ray that does not come up in time is started again."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a cluster has, all machines together."""

    cpus: int
    gpus: int

    def of_each(self, device: str, cpus: int | None) -> tuple[int, int]:
        """CPUs and GPUs that each job states.

        Args:
            device: `auto` takes a GPU where the cluster has one; `cpu` none; any other one.
            cpus: as many; None for 1, or with GPUs for an equal share of the CPUs, at most 8.

        Raises:
            ConfigError: the cluster has no GPU, or fewer CPUs than one job needs.
        """
        gpus = int(device != "cpu" and (device != "auto" or self.gpus > 0))
        if gpus and not self.gpus:
            raise ConfigError(f"device {device!r}: this Ray cluster has no GPU; use  --device cpu")
        wanted = cpus or (max(1, min(8, self.cpus // self.gpus)) if gpus else 1)
        if wanted > self.cpus:
            raise ConfigError(f"{wanted} CPUs for each job: this Ray cluster has only {self.cpus}; give fewer")
        return wanted, gpus

    def at_once(self, cpus: int, gpus: int) -> int:
        """Jobs of so many CPUs and GPUs that run side by side."""
        return max(1, min(self.cpus // cpus, self.gpus // gpus) if gpus else self.cpus // cpus)


@contextmanager
def cluster(address: str | None, purpose: str) -> Iterator[Resources]:
    """Connect to Ray; what is started or connected here is left again when the block ends.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT` of a cluster; None for a Ray of our own on this machine. A Ray
            that this process is connected to already is used as it is.
        purpose: what Ray is for, begins the message where it is not installed.

    Raises:
        ConfigError: no cluster answers at the address.
        MissingExtraError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with needs_extra("scale", purpose):
        import ray
    ours = not ray.is_initialized()
    if ours and address is None:
        _start(ray)
    elif ours:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster lets us in at {address} ({reason(error)}): start one with  ray start --head , give "
                "this machine its token (RAY_AUTH_MODE=token), or leave --ray out"
            ) from error
    try:
        there = ray.cluster_resources()
        yield Resources(max(1, int(there.get("CPU", 1))), int(there.get("GPU", 0)))
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any) -> None:
    """Start Ray on this machine; a busy one may need longer than the 30 seconds that Ray waits."""
    # of each pool of actors Ray's core would say that its arguments lie in memory, as an error, on the user's screen
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for attempt in range(ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=processors(),
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            if attempt + 1 == ATTEMPTS:
                raise ConfigError(f"Ray does not start on this machine: {reason(error)}") from error
