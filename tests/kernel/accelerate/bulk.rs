//! Much at a time: it arrives, memory stays bounded, and whoever transfers leaves.

use std::collections::BTreeMap;

use super::{accelerated, counts, plan, play, require_acceleration, run};
use crate::fixture::Fixture;

/// 1 GiB each way at the same time, with sizes as chance has it.
const BOTH_WAYS: &str = r"
TOTAL = 1 << 30
def write(sock, digest, seed):
    chance, left, block = random.Random(seed), TOTAL, os.urandom(1 << 20)
    while left:
        size = min(left, chance.choice([1, 100, 4096, 65536, 262144, 1 << 20]))
        start = chance.randrange(1 + len(block) - size)
        data = block[start:start + size]
        digest.update(data)
        send(sock, data)
        left -= size
def read(sock, digest):
    left = TOTAL
    while left:
        data = receive(sock, min(left, 262144))
        digest.update(data)
        left -= len(data)
app, proxy = pair()
for _ in range(20): turn(app, proxy)
threads, digests = [], [hashlib.sha256() for _ in range(4)]
for number, (sender, receiver) in enumerate([(app, proxy), (proxy, app)]):
    threads.append(threading.Thread(target=write, args=(sender, digests[number], number)))
    threads.append(threading.Thread(target=read, args=(receiver, digests[number + 2])))
for thread in threads: thread.start()
for thread in threads: thread.join()
for number in [0, 1]:
    assert digests[number].digest() == digests[number + 2].digest(), 'other bytes'
for _ in range(20): turn(app, proxy)
";

#[test]
fn a_gibibyte_both_ways_arrives_and_leaves() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    run(&fixture, BOTH_WAYS)?;
    let counts = counts(&fixture)?;
    assert_eq!((counts["joined"], counts["demoted"]), (1, 1), "{counts:?}");
    assert_eq!(counts["left"], 2, "{counts:?}");
    // Of some ten thousand: nobody looks at messages any more.
    assert!(counts["passed"] < 1000, "{counts:?}");
    Ok(())
}

/// The same in turns, every byte of it handed over.
#[test]
fn a_gibibyte_both_ways_in_turns_is_handed_over() -> anyhow::Result<()> {
    require_acceleration!();
    let script = r"
SIZE = 65536
app, proxy = pair()
block = os.urandom(SIZE * 2)
digests = [hashlib.sha256() for _ in range(4)]
for number in range((1 << 30) // SIZE):
    start = number % SIZE
    data = block[start:start + SIZE]
    for way, (sender, receiver) in enumerate([(app, proxy), (proxy, app)]):
        digests[way].update(data)
        send(sender, data)
        digests[way + 2].update(receive(receiver, SIZE))
for way in [0, 1]:
    assert digests[way].digest() == digests[way + 2].digest(), 'other bytes'
";
    let counts = play(script)?;
    assert!(counts["redirected"] >= 2 << 14, "{counts:?}");
    assert_eq!((counts["passed"], counts["demoted"]), (0, 0), "{counts:?}");
    Ok(())
}

/// What a reader that does not read makes the kernel keep is what TCP would, and 256 KiB.
#[test]
fn a_slow_reader_is_waited_for() -> anyhow::Result<()> {
    require_acceleration!();
    // Fixed buffers: else they grow as TCP sees fit.
    let script = r"
small = [(socket.SOL_SOCKET, option, 65536) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
app, proxy = pair(options=small, listening=small)
turn(app, proxy)
# The proxy speaks, and does not read: this is no transfer.
sent = fill(app, 60000, 2, lambda: (send(proxy, b'x'), receive(app, 1)))
print(sent)
at = 0
while at < sent:
    data = receive(proxy, min(sent - at, 50000))
    assert data == pattern(at, len(data)), f'other bytes after {at}'
    at += len(data)
for _ in range(20): turn(app, proxy)
";
    let plain: u64 = run(&Fixture::new(plan(false))?, script)?.trim().parse()?;
    let fixture = accelerated()?;
    let sent: u64 = run(&fixture, script)?.trim().parse()?;
    let counts = counts(&fixture)?;
    assert!(counts["redirected"] > 4, "{counts:?}");
    assert!(
        sent > plain,
        "nothing was handed over: {sent} and {plain} bytes"
    );
    assert!(sent <= plain + (256 << 10), "{sent} bytes, {plain} without");
    Ok(())
}

/// An end with something in the queue beside stays until it is read.
#[test]
fn nothing_is_lost_by_leaving() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    let script = r"
for _ in range(20):
    app, proxy = pair()
    for _ in range(5): turn(app, proxy)
    # Handed over, and not read.
    send(app, b'unread')
    # A download, for which TCP is better: acknowledged bit by bit.
    for number in range(200):
        send(proxy, pattern(0, 20000))
        assert receive(app, 20000) == pattern(0, 20000)
    assert receive(proxy, 6) == b'unread'
    for number in range(200):
        send(proxy, pattern(0, 20000))
        assert receive(app, 20000) == pattern(0, 20000)
    for _ in range(5): turn(app, proxy)
    app.close(); proxy.close()
";
    run(&fixture, script)?;
    let counts: BTreeMap<_, _> = counts(&fixture)?;
    assert_eq!((counts["demoted"], counts["left"]), (20, 40), "{counts:?}");
    Ok(())
}
