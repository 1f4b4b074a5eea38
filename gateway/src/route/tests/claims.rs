//! What a worker claims, and what becomes of it when it is not true.

use super::*;

#[test]
fn a_claim_attracts_nothing_once_it_is_broken() {
    let boast = || LoadReport { slots: 1024, speed: 100.0, ..load() };
    let two = || {
        let liars = (5..=8).map(|port| worker(port, boast())).collect();
        snapshot(vec![pool("aws", vec![worker(1, load())]), pool("gcp", liars)])
    };
    let job = Job { work_s: 3600.0, ..Job::default() };
    let honest = two();
    assert!(shares(&honest, &job)["gcp"] > 0.99, "nothing tells yet that it is a lie");
    // The request that has met the lie believes nobody of that pool.
    let met = honest.pools[1].workers[0].address;
    let exclude = Exclude { tried: smallvec![met], disbelieved: vec![met], ..Exclude::default() };
    let mut rng = rng();
    let to_liars =
        (0..1000).filter(|_| submit(&honest, &job, &exclude, NOW, &mut rng).unwrap().pool.as_str() == "gcp");
    assert!(to_liars.count() < 100);
    // Others believe nobody who lied: beside an honest worker of its pool, and as a whole pool.
    let mut known = two();
    for worker in &mut known.pools[1].workers {
        worker.failing_until = Some(NOW + Duration::from_secs(1));
    }
    assert!(shares(&known, &job)["gcp"] < 0.1);
    known.pools[1].workers.push(worker(9, load()));
    known.pools.remove(0);
    let honest = (0..1000).filter(|_| {
        let decision = submit(&known, &job, &Exclude::default(), NOW, &mut rng).unwrap();
        decision.address.port() == 9
    });
    assert!(honest.count() > 800);
}
