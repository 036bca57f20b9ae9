//! Who is accelerated, and where nothing is.

use sidecar_agent::dataplane::default_pin_dir;
use sidecar_tests::require_root;

use super::{Running, accelerated, counts, plan, play, require_acceleration, run};
use crate::{
    fixture::{Fixture, Loaded, link_info},
    uninstall::uninstalled,
};

#[test]
fn turns_are_handed_over() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    let script = "
app, proxy = pair()
for size in [1, 1000, 16384, 65536]:
    for _ in range(50):
        turn(app, proxy, os.urandom(size), os.urandom(size))
print(app.getpeername())
";
    assert_eq!(run(&fixture, script)?, "('10.96.0.1', 80)\n");
    let counts = counts(&fixture)?;
    assert_eq!(counts["joined"], 1);
    assert!(counts["redirected"] >= 400, "{counts:?}");
    assert_eq!(counts["demoted"], 0);
    Ok(())
}

/// Nothing is loaded, and nothing attached, for workloads that do not ask for it.
#[test]
fn it_is_off_unless_asked_for() -> anyhow::Result<()> {
    require_root!();
    let mut fixture = Fixture::new(plan(false))?;
    let script = "
app, proxy = pair()
for _ in range(20): turn(app, proxy)
";
    run(&fixture, script)?;
    assert!(counts(&fixture)?.is_empty());
    let maps = fixture.loaded.maps_dir();
    let join = maps.join(format!("workload-{}/join", fixture.workload));
    assert!(!maps.join("MEMBERS").exists() && !join.exists());
    require_acceleration!();
    fixture.follow(plan(true))?;
    assert!(maps.join("MEMBERS").exists() && link_info(&join).is_ok());
    fixture.follow(plan(false))?;
    assert!(!join.exists(), "it stays attached");
    run(&fixture, script)?;
    assert_eq!(counts(&fixture)?["joined"], 0);
    Ok(())
}

/// One that blocks could be told `EAGAIN`.
#[test]
fn who_blocks_is_left_alone() -> anyhow::Result<()> {
    require_acceleration!();
    let script = "
app, proxy = pair(blocking=True)
app.setblocking(False)
for _ in range(20): turn(app, proxy)
app, proxy = pair()
proxy.setblocking(True)
send(app, b'question')
assert receive(proxy, 8) == b'question'
";
    let counts = play(script)?;
    assert_eq!(
        (counts["joined"], counts["redirected"]),
        (1, 0),
        "{counts:?}"
    );
    Ok(())
}

/// What is established goes on as it is, when acceleration is turned on and when it is turned off.
#[test]
fn late_enable_touches_no_connection() -> anyhow::Result<()> {
    require_acceleration!();
    let mut fixture = Fixture::new(plan(false))?;
    let script = "
app, proxy = pair()
send(app, b'before ')
pause('on')
send(app, b'after')
assert receive(proxy, 12) == b'before after'
for _ in range(20): turn(app, proxy)
app2, proxy2 = pair()
for _ in range(20): turn(app2, proxy2)
send(app2, b'before ')
pause('off')
send(app2, b'after')
assert receive(proxy2, 12) == b'before after'
for _ in range(20): turn(app2, proxy2)
";
    let mut running = Running::start(&fixture, script)?;
    for (word, accelerate) in [("on", true), ("off", false)] {
        running.wait_for(word)?;
        fixture.follow(plan(accelerate))?;
        running.go_on()?;
    }
    running.end()?;
    let counts = counts(&fixture)?;
    assert_eq!(counts["joined"], 1, "{counts:?}");
    assert!(counts["redirected"] >= 80, "{counts:?}");
    Ok(())
}

/// What is pinned goes on without an agent, and the next one finds it.
#[test]
fn it_outlives_the_agent() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    let script = "
app, proxy = pair()
for _ in range(20): turn(app, proxy)
";
    run(&fixture, script)?;
    let fixture = fixture.again()?;
    let broken = fixture.loaded.dataplane.broken_links(fixture.workload);
    assert!(broken.is_empty());
    run(&fixture, script)?;
    let counts = counts(&fixture)?;
    assert_eq!(counts["joined"], 2, "{counts:?}");
    Ok(())
}

/// Programs and maps are taken away; connections that are open end as they are.
#[test]
fn uninstalling_loses_nothing() -> anyhow::Result<()> {
    require_acceleration!();
    let fixture = accelerated()?;
    let script = "
app, proxy = pair()
for _ in range(20): turn(app, proxy)
send(app, b'unread')
pause('uninstall')
assert receive(proxy, 6) == b'unread'
for _ in range(20): turn(app, proxy)
app.close()
assert end(proxy) == b''
";
    let mut running = Running::start(&fixture, script)?;
    running.wait_for("uninstall")?;
    assert!(counts(&fixture)?["redirected"] > 40);
    let Loaded { dataplane, bpffs } = fixture.loaded;
    drop(dataplane);
    let pins = default_pin_dir(bpffs.path());
    uninstalled(&pins)?;
    assert!(!pins.exists(), "something is left");
    running.go_on()?;
    running.end()
}
