//! One member's log, snapshot or metadata with a flipped bit: the zone goes on, and nothing wrong
//! is applied (fault N45).

use super::*;
use ashlar_env::disk::{Disk, OpenHow};

fn rounds() -> u64 {
    if std::env::var_os("ASHLAR_NIGHTLY").is_some() { 1_000 } else { 30 }
}

/// Flips a byte, by chance, in a page of a file that holds something; gives where.
fn flip(disk: &MemDisk, dice: &mut SeededDice) -> Option<(String, u64)> {
    const PAGE: usize = 4096;
    let mut live = Vec::new();
    for name in disk.list().unwrap().into_iter().filter(|name| !name.starts_with("spare")) {
        let file = disk.open(&name, OpenHow::EXISTING).unwrap();
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        for (page, content) in bytes.chunks(PAGE).enumerate() {
            if let Some(last) = content.iter().rposition(|byte| *byte != 0) {
                live.push((name.clone(), (page * PAGE) as u64, last as u64));
            }
        }
    }
    let at = usize::try_from(dice.below(live.len().max(1) as u64)).unwrap();
    let (name, page, last) = live.get(at)?;
    let offset = page + dice.below(last + 1);
    disk.flip(name, offset).unwrap();
    Some((name.clone(), offset))
}

fn volumes(world: &mut World) -> usize {
    match world.ask(&Request::ListVolumes(v1::ListVolumesRequest::default())) {
        Ok(Reply::ListVolumes(list)) => list.volumes.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_zone_goes_on_with_a_damaged_member_and_nothing_wrong_is_applied() {
    let mut world = World::new(45);
    world.compact_after = 20;
    for id in 1..=3 {
        world.crash(id);
        world.start(id);
    }
    world.settle();
    let mut dice = SeededDice::new(46);
    let (mut refused, mut names) = (0, 0);
    for round in 0..rounds() {
        let victim = 1 + round % 3;
        if round % 2 == 0 && names < 40 {
            world.create(&format!("v{names}")).unwrap();
            names += 1;
        }
        (0..3).for_each(|_| world.tick());
        // The process ends, all that it wrote is on the disk.
        let host = world.hosts.get_mut(&victim).unwrap();
        host.member = None;
        let disk = if round % 5 == 4 { host.snapshots.clone() } else { host.log.clone() };
        for node in world.nodes.values_mut() {
            node.session = node.session.filter(|(member, _)| *member != victim);
        }
        let Some((name, offset)) = flip(&disk, &mut dice) else {
            world.start(victim);
            continue;
        };
        if world.try_start(victim).is_err() {
            refused += 1;
            // Two are enough; the third takes no part.
            if names < 40 {
                world.create(&format!("v{names}")).unwrap();
                names += 1;
            } else {
                assert_eq!(volumes(&mut world), names);
            }
            disk.flip(&name, offset).unwrap();
            world.start(victim);
        }
        let applied = world.hosts[&(1 + victim % 3)].member.as_ref().unwrap().applied_index();
        world.until("the member has caught up", |world| {
            world.hosts[&victim].member.as_ref().unwrap().applied_index() >= applied
        });
    }
    assert!(refused * 4 > rounds(), "only {refused} flips were noticed");
    world.until("all applied", |world| {
        let all = world.hosts.values().map(|host| host.member.as_ref().unwrap().applied_index());
        all.collect::<BTreeSet<u64>>().len() == 1
    });
    let states: Vec<_> =
        world.hosts.values().map(|host| host.member.as_ref().unwrap().state()).collect();
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "members differ");
    assert_eq!(volumes(&mut world), names);
}
