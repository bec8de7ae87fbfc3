//! Everything at once, at random: the agent is killed, stopped, hung, replaced, its disk full, its log unread, its
//! links detached, its model replaced, interfaces come and go, and floods pass by. From outside it is measured that
//! nobody is worse off than without an agent, and that what is blocked stays so while an agent lives.
//!
//! `CHAOS_SECONDS` says for how long (`cargo xtask chaos`), `CHAOS_SEED` repeats a run's deeds. Needs root.

mod agent;
mod deeds;
mod probes;
mod scene;

use std::time::{Duration, Instant};

use sensor_tests::checks::assert_clean;
use sensor_tests::rng::Rng;
use sensor_tests::topology::UPLINK;

use self::deeds::Deed;
use self::scene::Scene;

/// Without a wish: long enough for each deed, in most orders.
const SHORT: u64 = 45;
/// What an agent of this scene may hold in memory, in bytes.
const MOST_RESIDENT: u64 = 600 << 20;

fn wish(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

#[test]
fn nobody_is_worse_off_whatever_happens_to_the_agent() {
    let lasts = Duration::from_secs(wish("CHAOS_SECONDS").unwrap_or(SHORT));
    let seed = wish("CHAOS_SEED").unwrap_or_else(|| std::process::id().into());
    eprintln!("seed {seed}, {lasts:?}");
    let mut rng = Rng::new(seed);
    let mut scene = Scene::build();
    // What clients get without an agent, under the same flood.
    let without = scene.clients_without_agent();
    scene.begin();
    let (begun, mut done, mut largest) = (Instant::now(), [0u32; Deed::ALL.len()], 0);
    while begun.elapsed() < lasts {
        // In the short form each comes once before any comes again.
        let rarest = done.iter().min().copied().unwrap_or_default();
        let candidates: Vec<usize> = (0..done.len()).filter(|deed| done[*deed] == rarest).collect();
        let number = rng.pick(&candidates);
        eprintln!("{:>7.1?} {:?}", begun.elapsed(), Deed::ALL[number]);
        scene.perform(Deed::ALL[number], &mut rng);
        done[number] += 1;
        largest = largest.max(scene.check());
        std::thread::sleep(rng.millis(100..900));
    }
    assert!(largest < MOST_RESIDENT, "the agent took {} MiB", largest >> 20);
    let (clients, spared, blocked) = scene.end();
    eprintln!("{}: deeds {done:?}; at most {} MiB", begun.elapsed().as_secs(), largest >> 20);
    let [flooded, quiet] = clients;
    eprintln!("clients in a flood: without an agent {without}, with one {flooded}; between floods {quiet}");
    eprintln!("never to be dropped: {spared}; blocked: {blocked}");
    assert!(flooded.share() >= 0.95 * without.share(), "clients in a flood, without {without} and with {flooded}");
    assert!(quiet.share() >= 0.99, "clients between floods: {quiet}");
    assert!(blocked.wrong.is_empty(), "blocked datagrams arrived while an agent held the verdict: {blocked}");
    assert!(spared.lost() <= scene.may_be_lost(), "of those never to be dropped: {spared}");
    scene.balance_is_exact();
    scene.stop();
    assert_clean(&scene.lab.edge.netns, UPLINK);
    assert_eq!(scene.pins(), None, "pins are left");
}
