"""How full the devices are."""

import jax


def memory() -> dict[str, float]:
    """GiB in use, and the most so far, on the fullest of this host's devices. Nothing where
    devices do not say: a CPU has no memory of its own."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    names = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}
    return {
        name: max(each[key] for each in stats) / 2**30
        for name, key in names.items()
        if stats and all(key in each for each in stats)
    }
