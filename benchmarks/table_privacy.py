"""Rows of the README's measured table about keystreams, noise, masks and shares."""

from __future__ import annotations

from collections.abc import Callable

Row = tuple[str, str, str, str]
Entries = Callable[[str], dict]
PEER, TIMES = "Flower, float noise", "times Flower's"


def clip_rows(entries: Entries) -> list[Row]:
    """Clip and sum beside the two passes that it is made of, and the rotation of distributed noise."""
    rows: list[Row] = []
    for shape, entry in entries("clip_noise").items():
        if isinstance(entry, dict) and "fedcore, with noise" in entry:
            ratio, goal = entry["fedcore, with noise"]["of the two passes"], "1.3×" if "float32" in shape else "–"
            what = f"clip_noise_accumulate, {shape.replace('x', '×')}, against squared_norms + weighted_sum"
            rows.append((what, f"{ratio:.2f}×", goal, "clip_noise"))
    results = entries("hadamard")
    if entry := results.get("blocks of 65536"):
        what = f"hadamard, {results['length'] >> 20} Mi fp32 in blocks of 65,536"
        rows.append((f"{what}, of the bandwidth of a read", f"{entry['fedcore, of bandwidth']:.2f}", "0.5", "hadamard"))
        ratio = entry["fedcore, times the NumPy loop"]
        rows.append((f"{what}, against a NumPy loop over stages", f"{ratio:.0f}×", "10×", "hadamard"))
    return rows


def central_rows(entries: Entries) -> list[Row]:
    """A whole central release beside Flower's, whose noise is a float one."""
    rows: list[Row] = []
    for cohort, entry in entries("central").items():
        if not isinstance(entry, dict):
            continue
        for name, times in entry.items():
            if TIMES in times and ("AES" in name or "1 client" in cohort):
                what = f"privacy.Central, {cohort}, {name}, against Flower's fixed clipping with float noise"
                found = f"{times[TIMES]:.2f}× ({times['median']:.2f} s, Flower {entry[PEER]['median']:.2f} s)"
                whole = cohort.startswith("1 client") and name.endswith(" 1 thread")
                rows.append((what, found, "2.0×" if whole else "–", "central"))
    return rows


def keystream_rows(entries: Entries) -> list[Row]:
    """Streams added to a vector, one core, and both streams written out against OpenSSL's."""
    results, rows = entries("keystream"), []
    for stream, goal in (("AES-256-CTR", "14 GB/s"), ("ChaCha20", "5 GB/s")):
        if f"{stream}, 16 keys added" not in results:
            continue
        size = f"{results['bytes'] / 2**20:.0f} MiB of uint32, one core"
        for keys, aim in (("16 keys", goal), ("1 key", "–")):
            rate = results[f"{stream}, {keys} added"]["GB/s"]
            rows.append((f"keystream_add, {stream}, {keys}, {size}", f"{rate:.1f} GB/s", aim, "keystream"))
        ours, peer = (results[f"{stream}, {way}"]["GB/s"] for way in ("into fresh memory", "cryptography"))
        found = f"{ours:.1f} GB/s (OpenSSL through cryptography, into a ready buffer: {peer:.1f})"
        rows.append((f"keystream, {stream}, into fresh memory, one core", found, "–", "keystream"))
    return rows


def sampler_rows(entries: Entries) -> list[Row]:
    """Discrete Gaussians, one core, by both streams, and the normals that are not private."""
    results, rows = entries("discrete_gaussian"), []
    for sigma, goal in (("4", "200 M/s"), ("1000", "30 M/s"), ("1e+06", "15 M/s")):
        for stream in ("AES-256-CTR", "ChaCha20"):
            if (name := f"sigma {sigma}, {stream}") in results:
                aim = goal if stream == "AES-256-CTR" else "–"
                bits = results["bits of the distance"][f"sigma {sigma}"]
                what = f"discrete_gaussian, σ = {float(sigma):g}, {stream}, one core, within 2^−{int(bits)}"
                rows.append((what, f"{results[name]['M samples/s']:.0f} M/s", aim, "discrete_gaussian"))
    for name, entry in results.items():
        if "OpenDP" in name and isinstance(entry, dict):
            rows.append(
                (f"discrete Gaussian, {name}, one core", f"{entry['M samples/s']:.3f} M/s", "–", "discrete_gaussian")
            )
    for name, entry in results.items():
        if "not private" in name:
            rows.append((f"{name}, one core", f"{entry['M samples/s']:.0f} M/s", "–", "discrete_gaussian"))
    return rows


def proof_rows(entries: Entries) -> list[Row]:
    """The sampler at 10⁹ samples, and whether its time tells what was drawn."""
    rows: list[Row] = []
    if proof := entries("sampler_proof"):
        greatest = max(entry["greatest"] for entry in proof.values())
        count = sum(len(entry["standard deviations"]) for entry in proof.values())
        n = min(entry["samples"] for entry in proof.values())
        what = f"discrete_gaussian, {len(proof)} σ, {n:.0e} samples each: greatest of {count} deviations"
        rows.append((what, f"{greatest:.1f} standard deviations", "5", "sampler_proof"))
    if timing := entries("constant_time"):
        greatest = max(abs(t) for t in timing["t"].values())
        control = abs(timing["t of the control, a binary search"])
        found = f"{greatest:.1f} ({control:.0f} for a binary search, which is not)"
        rows.append(("discrete_gaussian, constant time: greatest t of all ISAs", found, "4.5", "constant_time"))
    return rows


def mask_rows(entries: Entries) -> list[Row]:
    """A client's mask stage and a server's fold, one core, beside Flower's SecAgg+."""
    results, rows = entries("mask_add"), []
    if not results:
        return rows
    client, what = results["client"], f"mask_add, {results['elements']:,} fp32 to {results['bits']} bits, one core"
    for keys, goal in (("100 keys", "0.32 s, 20×"), ("10 keys", "20×"), ("1 key", "1.3× a copy")):
        for stream in ("AES-256-CTR", "ChaCha20"):
            entry, aim = client[f"{keys}, {stream}"], goal if stream == "AES-256-CTR" else "–"
            found = f"{entry['median'] * 1e3:.1f} ms"
            if keys == "1 key":
                found += f", {entry['times a copy']:.2f}× a copy"
            else:
                found += f", {entry['times as fast as Flower']:.0f}× as fast as Flower"
            rows.append((f"{what}, {keys}, {stream}", found, aim, "mask_add"))
    for size, entry in results["server"].items():
        for name, goal in (("unpack_add", "10 GB/s"), ("pack_bits", "–")):
            rate = entry[name]["GB/s of packed bytes"]
            count = f"{int(size.split()[0]):,} residues of {results['bits']} bits, one core"
            told = f"{rate:.1f} GB/s of packed bytes"
            if name == "unpack_add":
                told += f", {entry[name]['GB/s moved']:.0f} GB/s moved (a copy {entry['copy']['GB/s moved']:.0f})"
            rows.append((f"{name}, {count}", told, goal, "mask_add"))
    return rows


def shamir_rows(entries: Entries) -> list[Row]:
    """Shares of one secret, beside what Flower calls, and whether times tell secrets."""
    results, rows = entries("shamir"), []
    for name in ("split", "combine") if results else ():
        entry, sizes = results[name], f"{results['threshold']} of {results['shares']}, {results['bytes']} bytes"
        found = f"{entry['median'] * 1e3:.3f} ms, {entry['times as fast as Flower']:,.0f}× as fast as Flower"
        rows.append((f"shamir_{name}, {sizes}, one core", found, "1 ms, 1,000×", "shamir"))
    if timing := entries("constant_time_shares"):
        greatest, control = max(abs(t) for t in timing["t"].values()), abs(timing["t of the control"])
        found = f"{greatest:.1f} ({control:.0f} for products that leave out zeros)"
        rows.append(("shares and masks, constant time: greatest t of all ISAs", found, "4.5", "constant_time_shares"))
    return rows


def correlated_rows(entries: Entries) -> list[Row]:
    """What correlated noise gains over independent noise of the same ε and schema."""
    rows: list[Row] = []
    for plan, entry in entries("correlated_noise").items():
        if isinstance(entry, dict) and "independent, times correlated" in entry:
            found = f"{entry['independent, times correlated']:.2f}× (independent {entry['independent']:.1f} clips)"
            what = f"privacy.Correlated, {plan}: independent noise's error in sums of rounds, over its own, same ε"
            rows.append((what, found, "–", "correlated_noise"))
    return rows


def audit_rows(entries: Entries) -> list[Row]:
    """What attacks on the mechanisms show of ε, as claimed and where the noise is halved on purpose."""
    rows: list[Row] = []
    for audit, modes in entries("privacy_audit").items():
        for mode, entry in modes.items():
            whole, half = (entry[name]["epsilon at least"] for name in ("noise as claimed", "half the noise"))
            what = f"{mode} noise audited by {audit}: ε is at least, where {entry['claimed epsilon']:.2f} is claimed"
            rows.append((what, f"{whole:.2f} ({half:.2f} with half the noise)", "below", "privacy_audit"))
    return rows


def secagg_rows(entries: Entries) -> list[Row]:
    """What a secure sum costs a client, the wire and the server."""
    results, rows = entries("secagg"), []
    for adversary, entry in results.get("set-up of a client", {}).items():
        what = f"secure sum, 1,000 clients, {entry['neighbours']} neighbours, set-up of a client, {adversary} server"
        took = f"{entry['a client'] * 1e3:.1f} ms"
        if checked := entry.get("counts", {}).get("Ed25519 verification"):
            took += f", {entry['least by these'] * 1e3:.1f} ms of it {checked} signatures and the key agreements"
        rows.append((f"{what}, one core", took, "5 ms", "secagg"))
    if entry := results.get("client stage, n=10"):
        threads = "one thread" if results.get("threads of a client") == 1 else "all cores"
        found = f"{entry['fedcore']['median'] * 1e3:.0f} ms on {threads}, "
        found += f"{entry['times as fast as Flower']:.0f}× Flower's"
        if times := entry.get("times as fast as Flower's arithmetic"):
            found += f", {times:.0f}× its arithmetic alone"
        rows.append(("secure sum, whole mask stage, 10⁷ fp32, 10 clients, AES-256-CTR", found, "20×", "secagg"))
    if entry := results.get("wire"):
        found = f"{entry['bytes'] / 1e6:.2f} MB, {entry['bits a coordinate']:.3f} bits a number"
        rows.append(
            (
                "secure sum, 10⁷ numbers of 16 bits, modulus for 1,000 clients, upload",
                found,
                "32.5 MB + 0.1 %",
                "secagg",
            )
        )
    if entry := results.get("server, whole round"):
        what = (
            f"secure sum, server, {entry['clients']:,} × {entry['length']:,}, {entry['dropouts']} drop out, two cores"
        )
        found = f"{entry['all']:.1f} s, {entry['peak MB above the start']:.0f} MB with the output"
        rows.append((what, found, "10 s, 100 MB + the output", "secagg"))
    return rows


def crowding_rows(entries: Entries) -> list[Row]:
    """What members that crowd others reach, where no more of them are corrupt than may drop out."""
    results, rows = entries("crowding"), []
    for entry in results.get("cohorts", ()):
        if entry["corrupt"] > entry["dropout"] or not entry["worst"]:
            continue
        worst, tried = entry["worst"], entry["attacks that over-drew"]
        attacks = "1 attack" if tried == 1 else f"{tried} attacks"
        what = f"crowding, {attacks} by {entry['corrupt']} of {entry['clients']:,}: chance of a void round"
        found = f"2^{worst['void']['value']:.1f}".replace("-", "−")
        plain = f"2^{entry['log2 of the chance of a void round, not attacked']:.1f}".replace("-", "−")
        out = f"{worst['honest left out']['value']:.0f} honest members left out"
        rows.append((what, f"{found}, not attacked {plain}; {out}", "2^−20", "crowding"))
    return rows


def privacy_rows(entries: Entries) -> list[Row]:
    return [
        *clip_rows(entries),
        *central_rows(entries),
        *keystream_rows(entries),
        *sampler_rows(entries),
        *proof_rows(entries),
        *correlated_rows(entries),
        *audit_rows(entries),
        *mask_rows(entries),
        *shamir_rows(entries),
        *secagg_rows(entries),
        *crowding_rows(entries),
    ]
