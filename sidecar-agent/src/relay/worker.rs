//! A thread of the relay: one epoll loop that accepts, dials and moves bytes.
//!
//! A listener is watched by one thread, which hands every connection to the thread with the fewest
//! (itself, where equal); a connection stays where it is served first. Nothing here blocks, and an
//! event costs no allocation.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, Event, EventFlags},
    },
    io::Errno,
    net::{SocketFlags, accept_with, sockopt},
};
use slab::Slab;

use super::{
    conn::{Conn, Dialing, End, Outcome, Relaying, Side, Stage, With, reset_on_close},
    dial::{self, Dialed},
    engine::{Command, Listener, Mailbox, Shared},
    flow::Kit,
    listen::Listening,
    netns::Visitor,
    route::{Accepted, Route, SocketName, Way},
    spin::Spin,
    stats::{Counters, Tallying},
    token::{Kind, MAX_SLOTS, Token},
};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Accepting on a listener stops for so long after an error, mostly the lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts at a unix socket whose backlog is full.
const RETRY: Duration = Duration::from_millis(10);

/// A thread to which nothing happens for so long keeps no pipes.
const IDLE: Duration = Duration::from_secs(1);

/// State of a thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    /// The one of `shared` that is this thread's.
    own: Arc<Mailbox>,
    epoll: OwnedFd,
    conns: Slab<Conn>,
    listeners: Slab<Watched>,
    /// Earliest first; entries whose record no longer waits for them are passed over.
    timers: BinaryHeap<Reverse<(Instant, Token)>>,
    /// Connections that get another turn.
    again: Vec<Token>,
    /// Kept for their memory, empty.
    spare_turn: Vec<Token>,
    spare_commands: Vec<Command>,
    kit: Kit,
    visitor: Visitor,
    spin: Spin,
    generation: u32,
    stopping: Option<Stop>,
}

/// A listener this thread accepts on.
struct Watched {
    generation: u32,
    socket: Listening,
    listener: Arc<Listener>,
    /// Until when accepting is paused.
    paused: Option<Instant>,
}

/// No new connections; `None`: wait for the last one, however long.
#[derive(Clone, Copy)]
struct Stop(Option<Instant>);

impl Worker {
    /// A thread of `shared`, not yet running.
    pub(super) fn new(shared: Arc<Shared>, own: Arc<Mailbox>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &own.wake,
            Token::new(Kind::Wake, 0, 0).data(),
            EventFlags::IN,
        )?;
        Ok(Self {
            own,
            epoll,
            conns: Slab::new(),
            listeners: Slab::new(),
            timers: BinaryHeap::new(),
            again: Vec::new(),
            spare_turn: Vec::new(),
            spare_commands: Vec::new(),
            kit: Kit::new(),
            visitor: Visitor::new(Arc::clone(&shared.home)),
            spin: Spin::default(),
            generation: 0,
            stopping: None,
            shared,
        })
    }

    /// Serves until told to stop; the number of connections that had to be reset then.
    pub(super) fn run(mut self) -> usize {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match self.wait(&mut events) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "relay: epoll_wait failed, a thread gives up");
                    return self.reset_all();
                }
            }
            for event in events.drain(..) {
                self.dispatch(event);
            }
            self.other_turns();
            self.fire_timers();
            if let Some(Stop(deadline)) = self.stopping
                && (self.conns.is_empty() || deadline.is_some_and(|at| Instant::now() >= at))
            {
                return self.reset_all();
            }
        }
    }

    /// Takes what has happened; waits where nothing has.
    fn wait(&mut self, events: &mut Vec<Event>) -> Result<(), Errno> {
        let timeout = self.timeout();
        let at_once = Timespec::default();
        let began = Instant::now();
        if timeout != Some(at_once) {
            while events.is_empty() && began.elapsed() < self.spin.limit() {
                epoll::wait(&self.epoll, spare_capacity(events), Some(&at_once))?;
            }
        }
        if events.is_empty() {
            self.visitor.leave();
            epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())?;
        }
        if events.is_empty() && began.elapsed() >= IDLE {
            self.kit.pipes.close();
        }
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            let [first, last] = [first, last].map(|event| Token::of(event.data).kind());
            self.spin.came(first, last, began.elapsed());
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Event) {
        let Event { flags, data } = event;
        let token = Token::of(data);
        match token.kind() {
            Kind::Wake => self.obey(),
            Kind::Listener => self.accept(token),
            Kind::Client => self.conn_event(token, Side::Client, flags),
            Kind::Target => self.conn_event(token, Side::Target, flags),
        }
    }

    // Commands.

    fn obey(&mut self) {
        let mut commands = std::mem::take(&mut self.spare_commands);
        self.own.take(&mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Add(socket, listener, answer) => {
                    // Nobody waits for the answer where the caller's thread has ended.
                    let _ = answer.send(self.watch(socket, listener));
                }
                Command::Remove(token, answer) => {
                    if let Some(socket) = self.unwatch(token) {
                        let _ = answer.send(socket);
                    }
                }
                Command::Serve(client, listener) => self.serve(client, listener),
                Command::Stop(deadline) => {
                    self.stopping = Some(Stop(deadline));
                    self.listeners.clear();
                }
            }
        }
        self.spare_commands = commands;
    }

    fn watch(&mut self, socket: Listening, listener: Arc<Listener>) -> Result<Token, Errno> {
        let generation = self.next_generation();
        let slot = self.listeners.vacant_key();
        let token = Token::new(Kind::Listener, slot, generation);
        epoll::add(&self.epoll, &socket, token.data(), EventFlags::IN)?;
        self.listeners.insert(Watched {
            generation,
            socket,
            listener,
            paused: None,
        });
        self.counters().listeners.add(1);
        Ok(token)
    }

    fn unwatch(&mut self, token: Token) -> Option<Listening> {
        self.watched(token)?;
        while self.accept_one(token) {}
        let Watched { socket, .. } = self.listeners.try_remove(token.slot())?;
        self.counters().listeners.sub(1);
        // The descriptor lives on, so closing alone does not end the watch.
        let _ = epoll::delete(&self.epoll, &socket);
        Some(socket)
    }

    // Accepting.

    /// One connection per event: the event comes again while there are more, and live connections
    /// get their turn in between.
    fn accept(&mut self, token: Token) {
        self.accept_one(token);
    }

    /// Whether there was one.
    fn accept_one(&mut self, token: Token) -> bool {
        let Some(watched) = self.watched(token) else {
            return false;
        };
        match accept_with(
            &watched.socket,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        ) {
            Ok(client) => {
                let listener = Arc::clone(&watched.listener);
                self.place(client, listener);
                true
            }
            Err(Errno::AGAIN) => false,
            // The client has gone again.
            Err(Errno::INTR | Errno::CONNABORTED) => true,
            Err(errno) => {
                self.pause(token, errno);
                false
            }
        }
    }

    fn pause(&mut self, token: Token, errno: Errno) {
        let until = Instant::now() + ACCEPT_PAUSE;
        self.counters().accept_errors.add(1);
        let Some(watched) = self.listeners.get_mut(token.slot()) else {
            return;
        };
        tracing::warn!(listener = ?watched.listener.bound, %errno, "relay: accept failed, pausing");
        // Level-triggered: without interest it is silent. It fails only for want of a descriptor
        // that is there.
        let _ = epoll::modify(
            &self.epoll,
            &watched.socket,
            token.data(),
            EventFlags::empty(),
        );
        watched.paused = Some(until);
        self.timers.push(Reverse((until, token)));
    }

    fn resume(&mut self, token: Token) {
        let Some(watched) = self.listeners.get_mut(token.slot()) else {
            return;
        };
        watched.paused = None;
        let _ = epoll::modify(&self.epoll, &watched.socket, token.data(), EventFlags::IN);
    }

    /// Gives the connection to the thread with the fewest.
    fn place(&mut self, client: OwnedFd, listener: Arc<Listener>) {
        let own = self.counters();
        own.accepted.add(1);
        let load = |mailbox: &Arc<Mailbox>| mailbox.counters.active.get();
        let total: u64 = self.shared.mailboxes.iter().map(load).sum();
        if total >= self.shared.max_connections as u64 {
            own.limited.add(1);
            reset_on_close(&client);
            return;
        }
        let idlest = self
            .shared
            .mailboxes
            .iter()
            .min_by_key(|mailbox| load(mailbox));
        if let Some(other) = idlest.filter(|mailbox| load(mailbox) < own.active.get()) {
            other.counters.active.add(1);
            other.put(Command::Serve(client, listener));
        } else {
            own.active.add(1);
            self.serve(client, listener);
        }
    }

    /// Asks where the connection leads; it is counted as active already.
    fn serve(&mut self, client: OwnedFd, listener: Arc<Listener>) {
        let Way { route, tally } = listener.routes.route(&Accepted::new(&client));
        let slot = self.conns.vacant_key();
        let (targets, last_resort) = match route {
            Route::Dial(targets) if slot < MAX_SLOTS => (targets, false),
            Route::DialElse(targets) if slot < MAX_SLOTS => (targets, true),
            Route::Dial(_) | Route::DialElse(_) | Route::Refuse => {
                self.counters().refused.add(1);
                self.counters().active.sub(1);
                reset_on_close(&client);
                return;
            }
        };
        let is_unix = !matches!(listener.bound, SocketName::Tcp(_));
        let generation = self.next_generation();
        self.conns.insert(Conn {
            generation,
            queued: false,
            client: End::new(client, is_unix),
            tally: tally.map(Tallying::new),
            stage: Stage::Dialing(Box::new(Dialing::new(listener, targets, last_resort))),
        });
        self.dial(slot);
    }

    // Dialing.

    /// Tries the target in hand and those after it, until one is connected or has to be waited for.
    fn dial(&mut self, slot: usize) {
        loop {
            let Some(conn) = self.conns.get_mut(slot) else {
                return;
            };
            let token = Token::new(Kind::Target, slot, conn.generation);
            let Stage::Dialing(dialing) = &mut conn.stage else {
                return;
            };
            let Some(target) = dialing.targets.get(dialing.current) else {
                let cause = dialing.cause;
                self.counters().dial_failed(cause);
                return self.reset(slot);
            };
            let accepted = Accepted::new(&conn.client.socket);
            let Listener {
                bound, namespaces, ..
            } = &*dialing.listener;
            match dial::start(target, &accepted, bound, namespaces, &mut self.visitor) {
                Ok(Dialed {
                    socket,
                    is_unix,
                    connected,
                }) => {
                    let target = End::new(socket, is_unix);
                    if let Err(errno) = target.watch(&self.epoll, token) {
                        dialing.give_up(errno);
                    } else if connected {
                        return self.connected(slot, target);
                    } else {
                        dialing.pending = Some(target);
                        let at = Instant::now() + self.shared.dial_timeout;
                        dialing.deadline = Some(at);
                        dialing.timer = Some(at);
                        self.timers.push(Reverse((at, token)));
                        return;
                    }
                }
                Err(Errno::AGAIN) => {
                    let now = Instant::now();
                    let deadline = *dialing
                        .deadline
                        .get_or_insert(now + self.shared.dial_timeout);
                    if now >= deadline {
                        dialing.give_up(Errno::TIMEDOUT);
                        continue;
                    }
                    let at = deadline.min(now + RETRY);
                    dialing.timer = Some(at);
                    self.timers.push(Reverse((at, token)));
                    return;
                }
                Err(errno) => dialing.give_up(errno),
            }
        }
    }

    /// The socket on its way has arrived, or failed.
    fn dialed(&mut self, slot: usize, flags: EventFlags) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Stage::Dialing(dialing) = &mut conn.stage else {
            return;
        };
        let Some(pending) = dialing.pending.take() else {
            return;
        };
        // Without these there is no error to ask for.
        let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let outcome = if failed {
            sockopt::socket_error(&pending.socket).flatten()
        } else {
            Ok(())
        };
        match outcome {
            Ok(()) if flags.contains(EventFlags::OUT) => {
                let token = Token::new(Kind::Target, slot, conn.generation);
                self.connected(slot, pending);
                self.conn_event(token, Side::Target, flags);
            }
            Ok(()) if !failed => {
                dialing.pending = Some(pending);
            }
            outcome => {
                dialing.give_up(outcome.err().unwrap_or(Errno::CONNRESET));
                self.dial(slot);
            }
        }
    }

    /// Both sides are there; `target` is watched already.
    fn connected(&mut self, slot: usize, target: End) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        if let Stage::Dialing(dialing) = &conn.stage
            && dialing.is_last_resort()
        {
            self.own.counters.fell_back.add(1);
        }
        conn.stage = Stage::Relaying(Relaying::new(&conn.client, target));
        let token = Token::new(Kind::Client, slot, conn.generation);
        if let Err(errno) = conn.client.watch(&self.epoll, token) {
            self.counters().dial_failed(errno);
            return self.reset(slot);
        }
        // Most clients speak first, and have spoken by now.
        self.advance(slot, Some((Side::Client, EventFlags::IN)));
    }

    // Relaying.

    fn conn_event(&mut self, token: Token, side: Side, flags: EventFlags) {
        let slot = token.slot();
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        if conn.generation != token.generation() {
            return;
        }
        match &mut conn.stage {
            Stage::Dialing(_) if side == Side::Target => self.dialed(slot, flags),
            Stage::Dialing(_) => {}
            Stage::Relaying(_) => self.advance(slot, Some((side, flags))),
        }
    }

    fn other_turns(&mut self) {
        let spare = std::mem::take(&mut self.spare_turn);
        let mut turn = std::mem::replace(&mut self.again, spare);
        for token in turn.drain(..) {
            if let Some(conn) = self.conns.get_mut(token.slot())
                && conn.generation == token.generation()
            {
                conn.queued = false;
                self.advance(token.slot(), None);
            }
        }
        self.spare_turn = turn;
    }

    fn advance(&mut self, slot: usize, event: Option<(Side, EventFlags)>) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Stage::Relaying(relaying) = &mut conn.stage else {
            return;
        };
        let mut with = With {
            epoll: &self.epoll,
            kit: &mut self.kit,
            counters: &self.own.counters,
            tally: conn.tally.as_deref(),
            client: Token::new(Kind::Client, slot, conn.generation),
            target: Token::new(Kind::Target, slot, conn.generation),
        };
        let outcome = match event {
            Some((side, flags)) => relaying.event(side, flags, &mut conn.client, &mut with),
            None => relaying.advance(&mut conn.client, &mut with),
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Again => {
                if !std::mem::replace(&mut conn.queued, true) {
                    self.again.push(with.client);
                }
            }
            Outcome::Ended => self.forget(slot),
            Outcome::Broken => {
                self.own.counters.reset.add(1);
                self.reset(slot);
            }
        }
    }

    /// Ends a connection with a reset to both sides.
    fn reset(&mut self, slot: usize) {
        if let Some(conn) = self.conns.get(slot) {
            conn.client.will_reset();
            if let Stage::Relaying(relaying) = &conn.stage {
                relaying.target.will_reset();
            }
        }
        self.forget(slot);
    }

    /// Closes both sockets; the kernel still sends what they were given.
    fn forget(&mut self, slot: usize) {
        if self.conns.try_remove(slot).is_some() {
            self.counters().active.sub(1);
        }
    }

    fn reset_all(&mut self) -> usize {
        let slots: Vec<usize> = self.conns.iter().map(|(slot, _)| slot).collect();
        for &slot in &slots {
            self.reset(slot);
        }
        slots.len()
    }

    // Time.

    /// How long to wait for events; `None`: as long as it takes.
    fn timeout(&self) -> Option<Timespec> {
        if !self.again.is_empty() {
            return Some(Timespec::default());
        }
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let stop = self.stopping.and_then(|Stop(deadline)| deadline);
        let idle = self.kit.pipes.are_kept().then(|| Instant::now() + IDLE);
        let next = timer.into_iter().chain(stop).chain(idle).min()?;
        // Rounded up to what epoll_wait(2) knows, or it would return just before the time.
        let wait = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(Duration::from_millis(wait.as_millis().try_into().ok()?)).ok()
    }

    fn fire_timers(&mut self) {
        while let Some(&Reverse((at, token))) = self.timers.peek() {
            let awaited = self.is_awaited(at, token);
            if awaited && Instant::now() < at {
                return;
            }
            self.timers.pop();
            if !awaited {
                continue;
            }
            match token.kind() {
                Kind::Listener => self.resume(token),
                _ => self.dial_timer(token.slot()),
            }
        }
    }

    fn is_awaited(&self, at: Instant, token: Token) -> bool {
        if token.kind() == Kind::Listener {
            return self
                .watched(token)
                .is_some_and(|watched| watched.paused == Some(at));
        }
        self.conns
            .get(token.slot())
            .is_some_and(|conn| match &conn.stage {
                Stage::Dialing(dialing) => {
                    conn.generation == token.generation() && dialing.timer == Some(at)
                }
                Stage::Relaying(_) => false,
            })
    }

    /// The target in hand is late, or may be tried again.
    fn dial_timer(&mut self, slot: usize) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Stage::Dialing(dialing) = &mut conn.stage else {
            return;
        };
        if dialing.pending.is_some() {
            dialing.give_up(Errno::TIMEDOUT);
        }
        self.dial(slot);
    }

    // Access.

    fn watched(&self, token: Token) -> Option<&Watched> {
        self.listeners
            .get(token.slot())
            .filter(|it| it.generation == token.generation())
    }

    fn counters(&self) -> &Counters {
        &self.own.counters
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }
}
