//! How connections end.

use super::{play, require_acceleration};

#[test]
fn half_closed_connections_go_on() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
for who in [0, 1]:
    ends = pair()
    turn(*ends)
    closes, answers = ends[who], ends[1 - who]
    send(closes, b'last words')
    closes.shutdown(socket.SHUT_WR)
    assert receive(answers, 10) == b'last words'
    assert end(answers) == b''
    for _ in range(20):
        send(answers, pattern(0, 3000))
        assert receive(closes, 3000) == pattern(0, 3000)
    send(answers, b'and an answer')
    answers.close()
    assert receive(closes, 13) == b'and an answer'
    assert end(closes) == b''
";
    let counts = play(script)?;
    // Of the answers that nothing is said to, a few, before they look like a transfer.
    assert!(counts["redirected"] >= 20, "{counts:?}");
    Ok(())
}

/// The other end is told that it is over, if not always why.
#[test]
fn a_reset_ends_the_connection() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
for who in [0, 1]:
    ends = pair()
    turn(*ends)
    resets, learns = ends[who], ends[1 - who]
    resets.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    resets.close()
    wait(learns, select.POLLIN, 'the reset')
    assert end(learns) in (b'', b'reset')
    try:
        send(learns, b'anybody there?')
        raise SystemExit('it could be written to')
    except (BrokenPipeError, ConnectionResetError):
        pass
    learns.close()
";
    play(script)?;
    Ok(())
}

/// What a process has written is read after its end.
#[test]
fn last_words_outlive_the_process() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
for _ in range(30):
    server = listener()
    child = os.fork()
    if child == 0:
        server.close()
        app = call()
        wait(app, select.POLLOUT, 'the connection')
        for _ in range(3):
            send(app, b'question')
            receive(app, 6)
        send(app, pattern(0, 30000))
        os._exit(0)
    proxy = accept(server)
    server.close()
    for _ in range(3):
        assert receive(proxy, 8) == b'question'
        send(proxy, b'answer')
    # It is over before anything is read.
    assert os.waitpid(child, 0)[1] == 0
    assert receive(proxy, 30000) == pattern(0, 30000)
    assert end(proxy) == b''
    proxy.close()
";
    let counts = play(script)?;
    // All but the first, which may come before it is known whether the proxy blocks.
    assert!(counts["redirected"] >= 30 * 6, "{counts:?}");
    Ok(())
}
