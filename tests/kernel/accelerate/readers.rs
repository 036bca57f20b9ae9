//! Readers of all kinds.

use super::{play, require_acceleration};

/// Who reads a little at a time is woken again; who is woken once reads until there is nothing.
#[test]
fn level_and_edge_triggered_readers_get_everything() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
def read_by(epoll, sock, size, step, until_nothing):
    got = b''
    while len(got) < size:
        assert epoll.poll(DEADLINE), f'not woken after {len(got)} of {size} bytes'
        while True:
            try:
                got += sock.recv(step)
            except BlockingIOError:
                break
            if not until_nothing: break
    return got
for flags, until_nothing in [(0, False), (select.EPOLLET, True)]:
    for options in [(), [(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)]]:
        app, proxy = pair()
        epolls = []
        for sock in [app, proxy]:
            epoll = select.epoll()
            epoll.register(sock, select.EPOLLIN | flags)
            epolls.append(epoll)
        for number in range(300):
            size = [1, 100, 5000, 60000][number % 4]
            # In one piece, and in several: some of it goes by TCP.
            for pieces in [1, 12]:
                for at in range(0, size, -(-size // pieces)):
                    send(app, pattern(at, min(-(-size // pieces), size - at)))
                assert read_by(epolls[1], proxy, size, 1 + size // 3, until_nothing) == pattern(0, size)
                send(proxy, pattern(0, size))
                assert read_by(epolls[0], app, size, 1 + size // 3, until_nothing) == pattern(0, size)
        app.close(); proxy.close()
";
    let counts = play(script)?;
    assert!(counts["redirected"] > 1000, "{counts:?}");
    Ok(())
}

/// Whoever waits for more than a byte would be woken too early.
#[test]
fn a_low_water_mark_is_heeded() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
app, proxy = pair()
proxy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
poll = select.poll()
poll.register(proxy, select.POLLIN)
send(app, b'five.')
assert not poll.poll(0), 'woken for five bytes'
send(app, b'five.')
wait(proxy, select.POLLIN, 'ten bytes')
assert receive(proxy, 10) == b'five.five.'
";
    assert_eq!(play(script)?["redirected"], 0);
    Ok(())
}
