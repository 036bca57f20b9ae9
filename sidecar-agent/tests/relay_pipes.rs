//! The pipes of a relay to which nothing happens. In a process of its own, as other tests have pipes
//! as well.

#[expect(dead_code, reason = "what other tests need")]
#[path = "relay/support.rs"]
mod support;

use std::{fs, io::Write as _, thread};

use support::{Server, connect_through, engine, eventually, lead_to, loopback, serve};

/// Ends of pipes that this process holds.
fn pipes() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = descriptors.filter_map(|of| fs::read_link(of.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn an_idle_relay_holds_no_pipes() {
    const MUCH: usize = 8 << 20;
    let before = pipes();
    let (engine, server) = (engine(), Server::tcp());
    let (_, relay) = serve(&engine, loopback(), lead_to([server.name().target()]));
    let (client, mut accepted) = connect_through(&relay, &server);
    for turn in 1..3 {
        let mut sender = client.another();
        thread::scope(|scope| {
            scope.spawn(move || sender.write_all(&vec![turn; MUCH]).unwrap());
            assert_eq!(accepted.receive(MUCH), vec![turn; MUCH]);
        });
        // Else it took no pipe.
        let spliced = engine.stats().bytes_spliced;
        assert!(spliced > u64::from(turn - 1) * MUCH as u64, "{spliced}");
        eventually("no pipe to be held", || pipes() == before);
    }
}
