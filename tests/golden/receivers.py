"""Segments that a receiver does not accept, or that repeat what it has (RFC 9293 §3.10.7.4, RFC 5961, RFC 7413)."""

from frames import A, B, MS, SECOND, Tcp

WINDOW = 64_000
COOKIE = bytes.fromhex("020405b4 220a 1111111111111111 0101")
"""Options of a SYN with a Fast Open cookie: maximum segment size, cookie (RFC 7413), padding."""


def connection(client, server, port=80):
    """A connection of port 40000, and its handshake: SYN, SYN-ACK 10 ms and ACK 20 ms later."""
    talk = Tcp(((A, 40_000), (B, port)), (client, server), (WINDOW, WINDOW))
    return talk, [(step * 10 * MS, talk.send(step % 2, flags)) for step, flags in enumerate(("S", "SA", "A"))]


def close(talk):
    """FIN of the initiator, FIN of the responder, the last ACK: 50 ms, 60 ms and 70 ms after the whole second."""
    return [(50 * MS, talk.send(0, "FA")), (60 * MS, talk.send(1, "FA")), (70 * MS, talk.send(0, "A"))]


def later(frames, by):
    """The same frames `by` ns later."""
    return [(time + by, frame) for time, frame in frames]


def tcp_fast_open():
    """A SYN with cookie and 200 bytes, which the SYN-ACK acknowledges; it carries 300 bytes itself."""
    talk = Tcp(((A, 40_000), (B, 80)), (1_000, 9_000), (WINDOW, WINDOW))
    return [
        (0, talk.send(0, "S", 200, options=COOKIE)),
        (10 * MS, talk.send(1, "SA", 300)),
        (20 * MS, talk.send(0, "A")),
        (30 * MS, talk.send(1, "PA", 100)),
        (40 * MS, talk.send(0, "A")),
    ] + close(talk)


def tcp_fast_open_not_accepted():
    """The SYN-ACK acknowledges the SYN alone: the 200 bytes are sent again."""
    talk = Tcp(((A, 40_000), (B, 80)), (1_000, 9_000), (WINDOW, WINDOW))
    opening = talk.send(0, "S", 200, options=COOKIE)
    talk.next[0] = 1_001
    return [
        (0, opening),
        (10 * MS, talk.send(1, "SA")),
        (20 * MS, talk.send(0, "PA", 200)),
        (30 * MS, talk.send(1, "A")),
    ] + close(talk)


def tcp_fast_open_fallback():
    """No answer: the SYN is sent again without cookie and data, and the data after the handshake."""
    talk = Tcp(((A, 40_000), (B, 80)), (1_000, 9_000), (WINDOW, WINDOW))
    opening = talk.send(0, "S", 200, options=COOKIE)
    talk.next[0] = 1_000
    second = [
        (0, talk.send(0, "S")),
        (10 * MS, talk.send(1, "SA")),
        (20 * MS, talk.send(0, "A")),
        (30 * MS, talk.send(0, "PA", 200)),
        (40 * MS, talk.send(1, "A")),
    ] + close(talk)
    return [(0, opening)] + later(second, SECOND)


def tcp_keep_alive_octet():
    """Keep-alives with one octet of garbage, all data acknowledged before."""
    talk, frames = connection(1_000, 9_000)
    for at, side, length in ((100, 0, 18), (200, 1, 500)):
        frames.append((at * MS, talk.send(side, "PA", length)))
        frames.append(((at + 10) * MS, talk.send(1 - side, "A")))
    for at in (10, 15, 20):
        frames.append((at * SECOND, talk.send(0, "A", 1, seq=talk.next[0] - 1)))
        frames.append((at * SECOND + 10 * MS, talk.send(1, "A")))
    return frames


def tcp_one_octet_again():
    """Four typed characters, each sent again before it is acknowledged: the same numbers as a keep-alive's."""
    talk, frames = connection(1_000, 9_000, port=23)
    for second in range(4):
        start = second * SECOND
        frames.append((start + 100 * MS, talk.send(0, "PA", 1)))
        frames.append((start + 400 * MS, talk.send(0, "PA", 1, seq=talk.next[0] - 1)))
        frames.append((start + 410 * MS, talk.send(1, "A")))
    return frames


def zero_window(probe):
    """1,000 bytes close the window; three probes; the window opens and 500 bytes follow. `probe`: octets in each."""
    talk, frames = connection(1_000, 9_000)
    frames.append((100 * MS, talk.send(0, "PA", 1_000)))
    talk.window[1] = 0
    frames.append((110 * MS, talk.send(1, "A")))
    first = talk.next[0]
    for second in (1, 2, 3):
        frames.append((second * SECOND, talk.send(0, "A", probe, seq=first - 1 + probe)))
        frames.append((second * SECOND + 10 * MS, talk.send(1, "A")))
    talk.window[1] = WINDOW
    frames.append((5 * SECOND, talk.send(1, "A")))
    frames.append((5 * SECOND + 10 * MS, talk.send(0, "PA", 500)))
    frames.append((5 * SECOND + 20 * MS, talk.send(1, "A")))
    return frames


def tcp_zero_window_octet():
    """Probes of a closed window with the next octet: it is sent three times."""
    return zero_window(1)


def tcp_zero_window_empty():
    """Probes as Linux sends them, one below the next number and empty: keep-alives to whoever looks on."""
    return zero_window(0)


def exchanges(talk, times):
    """100 bytes of each side, the responder 50 ms after the initiator, at these times in ms."""
    frames = []
    for at in times:
        frames.append((at * MS, talk.send(0, "PA", 100)))
        frames.append(((at + 50) * MS, talk.send(1, "PA", 100)))
    return frames


def around_reset(reset, *more):
    """Four exchanges, a RST, and exchanges at `more` ms."""
    talk, frames = connection(1_000_000, 5_000_000)
    frames += exchanges(talk, (100, 200, 300, 400))
    return frames + [(600 * MS, reset(talk))] + exchanges(talk, more)


AFTER = (1_000, 4_000, 7_000, 10_000, 13_000, 16_000, 19_000, 22_000)


def tcp_reset_exact():
    """The responder's RST is at its next number."""
    return around_reset(lambda talk: talk.send(1, "R"))


def tcp_reset_outside_by_initiator():
    """A RST 1.5 * 10^9 above the window of the responder, which goes on."""
    return around_reset(lambda talk: talk.send(0, "R", seq=1_501_000_000), *AFTER)


def tcp_reset_outside_by_responder():
    """The same from the other side."""
    return around_reset(lambda talk: talk.send(1, "R", seq=1_505_000_000), *AFTER)


def tcp_reset_inside_window():
    """A RST in the window, 10 bytes above the next number: a challenge ACK answers it, nothing is closed."""
    return around_reset(lambda talk: talk.send(0, "R", seq=talk.next[0] + 10), *AFTER)


def tcp_reset_that_answers_no_syn():
    """A RST that acknowledges what was not sent, before the SYN-ACK."""
    talk = Tcp(((A, 40_000), (B, 80)), (1_000_000, 5_000_000), (WINDOW, WINDOW))
    frames = [
        (0, talk.send(0, "S")),
        (5 * MS, talk.send(1, "RA", seq=0, ack=1_000_777)),
        (10 * MS, talk.send(1, "SA")),
        (20 * MS, talk.send(0, "A")),
    ]
    for second in (3, 6, 9, 12, 15, 18):
        frames.append((second * SECOND, talk.send(0, "PA", 100)))
        frames.append((second * SECOND + 50 * MS, talk.send(1, "A")))
    return frames


def second_syn_ack(number, at):
    """A second SYN-ACK with another number; then a request and 20 segments of 1,000 bytes."""
    talk, frames = connection(1_000, 999_999)
    other = talk.send(1, "SA", seq=number)
    frames.append((100 * MS, talk.send(0, "PA", 100)))
    for segment in range(20):
        frames.append((200 * MS + segment * 10 * MS, talk.send(1, "PA", 1_000)))
        frames.append((205 * MS + segment * 10 * MS, talk.send(0, "A")))
    return sorted(frames + [(at, other)])


def tcp_second_syn_ack_above():
    """After the handshake, far above."""
    return second_syn_ack(2_000_000_000, 30 * MS)


def tcp_second_syn_ack_above_early():
    """Before the initiator has acknowledged the first one."""
    return second_syn_ack(2_000_000_000, 11 * MS)


def tcp_second_syn_ack_below():
    """After the handshake, below."""
    return second_syn_ack(100, 30 * MS)


def syn_in_connection(number):
    """Ten segments of 100 bytes, a SYN with another number and the challenge ACK, ten segments more."""
    talk, frames = connection(1_000_000, 9_000)
    for start in (200, 700):
        for segment in range(10):
            frames.append(((start + segment * 10) * MS, talk.send(0, "PA", 100)))
            frames.append(((start + segment * 10 + 5) * MS, talk.send(1, "A")))
        if start == 200:
            frames.append((500 * MS, talk.send(0, "S", seq=number)))
            frames.append((501 * MS, talk.send(1, "A")))
    return frames


def tcp_syn_in_connection():
    """The SYN's number lies half the number space away."""
    return syn_in_connection(3_000_000_000)


def tcp_syn_in_connection_ahead():
    """The SYN's number lies ahead."""
    return syn_in_connection(1_000_000_000)


def tcp_syn_answered_in_connection():
    """A SYN with another number in an open connection whose end was not seen, and the SYN-ACK: another connection."""
    talk, frames = connection(1_000_000, 9_000)
    frames += exchanges(talk, (100, 200))
    after = Tcp(talk.ends, (3_000_000_000, 77_000), (WINDOW, WINDOW))
    second = [(step * 10 * MS, after.send(step % 2, flags)) for step, flags in enumerate(("S", "SA", "A"))]
    return frames + later(second + exchanges(after, (100,)), SECOND)


def tcp_old_syn():
    """A late copy of the connection's own SYN, after data."""
    talk, frames = connection(1_000, 9_000)
    return frames + [
        (100 * MS, talk.send(0, "PA", 10)),
        (200 * MS, talk.send(1, "A")),
        (3_500 * MS, talk.send(0, "S", seq=1_000)),
        (3_510 * MS, talk.send(1, "A")),
        (4_000 * MS, talk.send(0, "PA", 10)),
        (4_100 * MS, talk.send(1, "A")),
    ]


def tcp_old_syn_and_data():
    """The same, and the first data again."""
    talk, frames = connection(1_000, 9_000)
    return frames + [
        (100 * MS, talk.send(0, "PA", 10)),
        (110 * MS, talk.send(1, "A")),
        (1_000 * MS, talk.send(0, "S", seq=1_000)),
        (1_010 * MS, talk.send(1, "A")),
        (2_000 * MS, talk.send(0, "PA", 10, seq=1_001)),
        (2_010 * MS, talk.send(1, "A")),
        (3_000 * MS, talk.send(0, "PA", 10)),
        (3_010 * MS, talk.send(1, "A")),
    ]


def tcp_outside_window():
    """Ten exchanges; between them data, FIN and ACK of both sides that the window does not hold, above and below."""
    talk, frames = connection(2**32 - 300, 2**32 - 700)
    number = 0
    for at in range(100, 1_100, 100):
        frames += exchanges(talk, (at,))
        for side in (0, 1):
            high = talk.next[side] + WINDOW + 1
            odd = [
                talk.send(side, "PA", 500, seq=high),
                talk.send(side, "FA", seq=high),
                talk.send(side, "PA", 500, seq=talk.next[side] - 70_000),
                talk.send(side, "A", seq=talk.next[side], ack=talk.next[1 - side] + 1),
                talk.send(side, "PA", 9, seq=talk.next[side], ack=talk.next[1 - side] + 5_000),
                talk.send(side, "A", seq=talk.next[side], ack=talk.next[1 - side] - 70_000),
            ]
            for frame in odd:
                frames.append(((at + 51) * MS + number % 12 * MS, frame))
                number += 1
    return frames + later(close(talk), 2 * SECOND)


CAPTURES = [
    tcp_fast_open,
    tcp_fast_open_not_accepted,
    tcp_fast_open_fallback,
    tcp_keep_alive_octet,
    tcp_one_octet_again,
    tcp_zero_window_octet,
    tcp_zero_window_empty,
    tcp_reset_exact,
    tcp_reset_outside_by_initiator,
    tcp_reset_outside_by_responder,
    tcp_reset_inside_window,
    tcp_reset_that_answers_no_syn,
    tcp_second_syn_ack_above,
    tcp_second_syn_ack_above_early,
    tcp_second_syn_ack_below,
    tcp_syn_in_connection,
    tcp_syn_in_connection_ahead,
    tcp_syn_answered_in_connection,
    tcp_old_syn,
    tcp_old_syn_and_data,
    tcp_outside_window,
]
