//! `millrace-bench gateway`, small: that it measures. What it finds of an unoptimised build means nothing.

use std::process::Command;

const BENCH: &str = env!("CARGO_BIN_EXE_millrace-bench");

#[test]
fn the_gateways_bench_measures_both_kinds_of_request_on_both_sides_and_judges_them() {
    let out = tempfile::tempdir().unwrap();
    let mut bench = Command::new(BENCH);
    bench.args(["gateway", "--alone", "--rounds", "2", "--requests", "200", "--connections", "4"]);
    let run = bench.arg("--out").arg(out.path()).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let complained = String::from_utf8_lossy(&run.stderr);

    let report = std::fs::read_to_string(out.path().join("gateway.txt"));
    let report = report.unwrap_or_else(|error| panic!("{error}\n{said}\n{complained}"));
    assert!(said.contains(&report), "the report is shown as it is written");
    for part in ["│ read ", "│ submit ", "│ minimal Pingora ", "│ millrace-gateway "] {
        assert!(report.contains(part), "no {part:?} in\n{report}");
    }
    for limit in ["1.10: ", "1.30: "] {
        assert!(report.contains(limit), "{report}");
    }
    let broken = report.contains("DOES NOT HOLD");
    assert_eq!(run.status.code(), Some(i32::from(broken)), "{report}\n{complained}");
    assert_eq!(complained.contains("a limit is broken"), broken, "{complained}");
}
