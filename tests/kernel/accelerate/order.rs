//! Bytes arrive once, and in their order, however they travel.

use super::{accelerated, play, require_acceleration, run};

/// Sizes, readers and pauses as chance has it, so that messages are handed over, passed and handed
/// over again.
#[test]
fn a_mixture_keeps_its_order() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
seed = int.from_bytes(os.urandom(4), 'big')
print(f'seed {seed}', file=sys.stderr)
chance = random.Random(seed)
for _ in range(20):
    ends = pair()
    sent, seen = [0, 0], [0, 0]
    for _ in range(400):
        # Mostly in turns, else it would be demoted at once.
        way = chance.randrange(2)
        size = chance.choice([1, 7, 500, 3000, 20000])
        for _ in range(chance.choice([1, 1, 1, 2])):
            send(ends[way], pattern(sent[way], size))
            sent[way] += size
        if chance.random() < 0.7:
            for back in [0, 1]:
                many = sent[back] - seen[back]
                many = chance.choice([many, many, many // 2])
                got = receive(ends[1 - back], many)
                assert got == pattern(seen[back], many), f'seed {seed}'
                seen[back] += many
    for back in [0, 1]:
        many = sent[back] - seen[back]
        assert receive(ends[1 - back], many) == pattern(seen[back], many), f'seed {seed}'
    ends[0].close(); ends[1].close()
";
    let counts = play(script)?;
    assert!(
        counts["redirected"] > 1000 && counts["passed"] > 100,
        "{counts:?}"
    );
    Ok(())
}

/// What came with the SYN is TCP's, and read before what is sent later.
#[test]
fn after_tcp_fast_open() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    fixture.netns.sysctl("net/ipv4/tcp_fastopen", "3")?;
    let script = r"
TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
for way in range(20):
    server = listener((socket.IPPROTO_TCP, TCP_FASTOPEN, 16))
    app = socket.socket()
    app.setblocking(False)
    try:
        assert app.sendto(b'first ', MSG_FASTOPEN, SERVICE) == 6
    except BlockingIOError:
        # No cookie yet: an ordinary connect.
        wait(app, select.POLLOUT, 'the connection')
        send(app, b'first ')
    proxy = accept(server)
    server.close()
    wait(app, select.POLLOUT, 'the connection')
    send(app, b'second ')
    send(app, b'third')
    assert receive(proxy, 18) == b'first second third'
    for _ in range(10): turn(app, proxy)
    app.close(); proxy.close()
";
    run(&fixture, script)?;
    Ok(())
}

/// What came before the connection was there to be accepted is TCP's too.
#[test]
fn after_tcp_defer_accept() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
for _ in range(20):
    server = listener((socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30))
    app = call()
    wait(app, select.POLLOUT, 'the connection')
    for part in [b'first ', b'second ', b'third']: send(app, part)
    proxy = accept(server)
    server.close()
    # By now it is known that the proxy does not block, and the others are unread.
    send(app, b' fourth')
    assert receive(proxy, 25) == b'first second third fourth'
    for _ in range(10): turn(app, proxy)
    app.close(); proxy.close()
";
    assert!(play(script)?["redirected"] > 0);
    Ok(())
}
