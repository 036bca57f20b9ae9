//! sk_msg: hands what one end of an accelerated connection sends over to the other, past TCP, if
//! every guard of `sidecar_common::accelerate` allows it; else TCP has it.

use aya_ebpf::{bindings::sk_action::SK_PASS, programs::SkMsgContext};
use sidecar_common::{
    accelerate::{Accelerated, End, Hop, Met, Side},
    standin,
};

use sidecar_ebpf::ctx::read;

use crate::{
    hops::{self, ends},
    peek::Tcp,
};

/// The sk_msg hook. A message always goes one way or the other.
#[inline(always)]
pub fn sk_msg(ctx: &SkMsgContext) -> u32 {
    let ends = ends!(ctx, msg);
    let mut to = ends.seen_from_there();
    let is_app = standin::slot_of_v4(ends.there).is_some();
    let (side, app) = if is_app {
        (Side::App, &ends)
    } else {
        (Side::Proxy, &to)
    };
    if let Some(hop) = hops::hop(app)
        && hop.demoted == 0
    {
        if may_be_handed_over(ctx, hop, side) && hops::hand_over(ctx, &mut to) {
            hop.handed_over();
            hops::count(Accelerated::REDIRECTED);
            return SK_PASS;
        }
        if hop.passed() {
            hops::count(Accelerated::DEMOTED);
        }
    }
    hops::count(Accelerated::PASSED);
    SK_PASS
}

#[inline(always)]
fn may_be_handed_over(ctx: &SkMsgContext, hop: &mut Hop, side: Side) -> bool {
    let size = read!(ctx.msg, size);
    if hop.take_turn(side, size) {
        return false;
    }
    let peer = match side {
        Side::App => &mut hop.proxy,
        Side::Proxy => &mut hop.app,
    };
    // Its other end may not have joined.
    if peer.socket == 0 || peer.flags & End::LEFT != 0 {
        return false;
    }
    let Some(own) = Tcp::of(read!(ctx.msg, __bindgen_anon_3.sk)) else {
        return false;
    };
    let there = Tcp::at(peer.socket);
    if !there.is(peer.cookie) {
        return false;
    }
    if peer.flags & End::NON_BLOCKING == 0 {
        if there.is_non_blocking() != Some(true) {
            return false;
        }
        peer.flags |= End::NON_BLOCKING;
    }
    match meet(own, there) {
        Some(met) => met.keeps_order() && peer.take_in(size, met.queue_is_empty),
        None => false,
    }
}

#[inline(always)]
fn meet(own: Tcp, there: Tcp) -> Option<Met> {
    Some(Met {
        write_seq: own.write_seq()?,
        state: own.state()?,
        is_special: own.has_ulp()? || own.is_odd()? || there.has_ulp()?,
        copied_seq: there.copied_seq()?,
        peer_state: there.state()?,
        queue_is_empty: there.queue_is_empty()?,
        low_water: there.low_water()?,
    })
}
