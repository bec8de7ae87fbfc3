"""What the shipped model is given, and how the numbers are scaled before its first layer.

Chosen by what an engineer would defend, not by what separates our own laboratory: the shape of a conversation (who
sends how much, in which sizes and order, how it opens and closes) and pauses of a second or more. Left out on purpose:
ports and protocol numbers, TTL, TCP windows, round-trip times, rates, and the smallest inter-arrival times: they tell
one machine, one tool or one network from another, and an attacker sets them at will.
"""

DIRECTIONS = ("fwd", "bwd")
SIZES = ("0", "1_63", "64_127", "128_255", "256_511", "512_1023", "1024_1399", "1400")
FIRST = 8

STATE = ["handshake_completed", "fin_initiator", "fin_responder", "reset", "reset_early", "closed"]
VOLUME = [f"{d}_{n}" for d in DIRECTIONS for n in ("packets", "payload_bytes", "payload_packets")]
# Headers of the initiator only: raw-socket tools send a SYN without options, which no operating system does.
HEADERS = ["fwd_header_bytes"]
PAYLOAD = [f"{d}_payload_{n}" for d in DIRECTIONS for n in ("max", "mean", "std")]
BINS = [f"{d}_size_{s}" for d in DIRECTIONS for s in SIZES]
FLAGS = [f"{d}_{f}" for d in DIRECTIONS for f in ("fin", "syn", "rst", "psh", "ack", "urg")]
ORDER = [f"first_{n}_{v}" for n in range(1, FIRST + 1) for v in ("direction", "payload")]
PAUSES = ["duration", "flow_iat_mean", "flow_iat_max", "fwd_iat_mean", "fwd_iat_max", "bwd_iat_max"]

NAMES = STATE + VOLUME + HEADERS + PAYLOAD + BINS + FLAGS + ORDER + PAUSES

# A missing value gets a number that no present one has: "not TCP" is not "no handshake", "no eighth packet" is not "an
# empty one". A direction is 1 or -1, so 0 is free; everything else is 0 or more, so -1 is.
FILL = {name: 0.0 if name.endswith("_direction") else -1.0 for name in NAMES}

# Then sign(x) * log(1 + |x|). Times stay in seconds, so everything below a tenth of one is nearly 0: round-trip times
# of our laboratory and of the Internet look alike, a slow client's pauses do not.
# After standardisation values are cut here: the layers saw nothing beyond.
LIMIT = 8.0
