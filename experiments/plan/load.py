"""Whether other programs slowed down what a plan measured."""

_QUIET = 0.8  # seconds of a core that one second of measuring gets, at least, where nothing else runs


def busy(share: float, load: float = 0.0, cores: int = 1) -> str:
    """Say that other programs are using this machine; empty where they are not.

    Args:
        share: seconds of a core that this process got in a second of measuring.
        load: processes that wanted a core, on average over the minute before the measurement.
        cores: of the machine.
    """
    if load > cores:
        seen = f"load {load:.1f} on {cores} cores"
    elif share < _QUIET:
        seen = f"the measurement got {share:.0%} of a core"
    else:
        return ""
    return f"other programs are using this machine ({seen}): expect less once it is quiet"
