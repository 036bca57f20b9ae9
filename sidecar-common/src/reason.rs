//! What was decided for a connection, and why. One enum each: counted in the kernel, printed by
//! `explain`, a label in metrics.

/// Declares an enum with the printed name and the explanation of each value in one place.
macro_rules! explained {
    (
        #[doc = $about:literal]
        enum $enum:ident {
            $($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $name:literal;)+
        }
    ) => {
        #[doc = $about]
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $enum { $($(#[doc = $doc])+ $variant = $value,)+ }

        impl $enum {
            /// Every one, in the order of its value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in output and metrics (kebab-case).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for an operator.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

explained! {
    /// How a connection travels.
    enum Path {
        /// Untouched.
        Pass = 0, "pass";
        /// Rewritten or assigned in the kernel: one connection, straight to where it leads.
        Direct = 1, "direct";
        /// Through the agent's own relay in the workload's network namespace.
        Relay = 2, "relay";
        /// To the external proxy's capture port, with the original destination kept.
        Proxy = 3, "proxy";
        /// Refused.
        Deny = 4, "deny";
    }
}

explained! {
    /// Why a connection was decided as it was.
    enum Reason {
        /// The workload has no plan: capture is off for it.
        NoPlan = 0, "no-plan";
        /// The connection is the proxy's own.
        ProxyOwn = 1, "proxy-own";
        /// The destination is the workload itself.
        SelfCall = 2, "self-call";
        /// The destination is a loopback address.
        Loopback = 3, "loopback";
        /// The port is in the exclude list.
        ExcludedPort = 4, "excluded-port";
        /// The address is in the exclude list.
        ExcludedRange = 5, "excluded-range";
        /// Neither the address nor the port is in the include lists.
        NotIncluded = 6, "not-included";
        /// The port is captured because the include list names it.
        IncludedPort = 7, "included-port";
        /// The address is captured because the include list covers it.
        IncludedRange = 8, "included-range";
        /// An egress listener of the Sidecar is being called at its bind address.
        EgressListener = 9, "egress-listener";
        /// A service that an egress listener of the Sidecar exposes.
        EgressService = 10, "egress-service";
        /// An ingress listener of the Sidecar.
        IngressListener = 11, "ingress-listener";
        /// A listener with captureMode NONE that the external proxy itself holds open.
        NoneListener = 12, "none-listener";
        /// A destination no egress listener exposes; outboundTrafficPolicy `ALLOW_ANY` lets it pass.
        AllowAny = 13, "allow-any";
        /// A destination no egress listener exposes; outboundTrafficPolicy `REGISTRY_ONLY` refuses it.
        RegistryOnly = 14, "registry-only";
        /// Inbound to a port that no ingress listener declares.
        UndeclaredPort = 15, "undeclared-port";
        /// Captured by default: everything not excluded goes to the proxy.
        CaptureAll = 16, "capture-all";
        /// The listener has no endpoint that could be reached: unresolved, or none in the registry.
        NoEndpoint = 17, "no-endpoint";
        /// The socket the connection should be given to is not listening.
        TargetNotListening = 18, "target-not-listening";
        /// A map entry the plan promises is missing. This is a defect, or a map was tampered with.
        PlanIncomplete = 19, "plan-incomplete";
        /// The listener uses what only an L7 proxy can do, and the workload has none.
        NeedsProxy = 20, "needs-proxy";
        /// The interception mode of the workload is NONE: only real listeners exist.
        InterceptionNone = 21, "interception-none";
        /// The kernel had no memory to remember the connection's destination.
        NoMemory = 22, "no-memory";
        /// A destination no egress listener exposes; outboundTrafficPolicy leads it to its egressProxy.
        EgressProxy = 23, "egress-proxy";
        /// The proxy calls the workload itself, as when an application calls its own service: its own inbound listener takes it.
        ProxySelfCall = 24, "proxy-self-call";
        /// The caller's group is in the list of owner groups that are not captured, or not in that of those that are.
        OwnerGroup = 25, "owner-group";
        /// The connection leaves or arrives by an excluded interface.
        ExcludedInterface = 26, "excluded-interface";
        /// IPv6 is not captured: the workload's first address is IPv4, and it is not dual-stack.
        Ipv6Off = 27, "ipv6-off";
        /// DNS, which the proxy answers.
        Dns = 28, "dns";
        /// The socket is bound to an interface, from which no loopback address can be reached.
        BoundDevice = 29, "bound-device";
        /// Its source is `127.0.0.6` or `::6`: the proxy passes an inbound connection on.
        Passthrough = 30, "passthrough";
        /// It arrives by a virtual interface, whose traffic is taken for outbound.
        VirtualInterface = 31, "virtual-interface";
        /// The proxy does not listen, and the failure policy for that is open: it passes.
        ProxyGone = 32, "proxy-gone";
        /// The workload's plan could not be put in force, there is none from before, and the failure policy for that is closed: it is refused.
        MapFull = 33, "map-full";
        /// The kernel had no memory to remember the connection's destination, and the failure policy for that is open: it passes.
        NoMemoryOpen = 34, "no-memory-open";
        /// A map entry the plan promises is missing, and the failure policy for that is open: it passes.
        PlanIncompleteOpen = 35, "plan-incomplete-open";
    }
}
