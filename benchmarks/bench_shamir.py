"""shamir_split and shamir_combine of one secret of 32 bytes, beside what Flower's SecAgg+ calls for the same secret."""

from __future__ import annotations

import os

import numpy as np
from measure import alternate, require_green, save

import fedcore as fc

SHARES, THRESHOLD, LENGTH = 100, 60, 32


def main() -> None:
    require_green("shamir")
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares

    secret, key, points = os.urandom(LENGTH), os.urandom(32), np.arange(SHARES - THRESHOLD, SHARES) + 1
    shares = fc.ops.shamir_split(secret, THRESHOLD, SHARES, key)[points - 1]
    theirs = create_shares(secret, THRESHOLD, SHARES)[:THRESHOLD]
    if fc.ops.shamir_combine(points, shares).tobytes() != secret or combine_shares(theirs) != secret:
        raise SystemExit("shamir: the shares do not give the secret back")
    ours = {
        "split": lambda: fc.ops.shamir_split(secret, THRESHOLD, SHARES, key),
        "combine": lambda: fc.ops.shamir_combine(points, shares),
    }
    peer = {
        "split, Flower": lambda: create_shares(secret, THRESHOLD, SHARES),
        "combine, Flower": lambda: combine_shares(theirs),
    }
    times = alternate(ours, 1001) | alternate(peer, 5)
    for name in ours:
        times[name]["times as fast as Flower"] = times[f"{name}, Flower"]["median"] / times[name]["median"]
    save("shamir", {"shares": SHARES, "threshold": THRESHOLD, "bytes": LENGTH, **times}, ("flwr", "pycryptodome"))


if __name__ == "__main__":
    main()
