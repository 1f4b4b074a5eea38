//! System tests: a whole Millrace of real binaries and real ffmpeg, on ports given by the kernel. Each test starts its
//! own system and, at its end, proves that nothing of it is left running and that no process panicked.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, too: that is the verdict")]

#[path = "system/stage.rs"]
mod stage;

#[path = "system/api.rs"]
mod api;
#[path = "system/bad_input.rs"]
mod bad_input;
#[path = "system/browser.rs"]
mod browser;
#[path = "system/cancel.rs"]
mod cancel;
#[path = "system/chromium.rs"]
mod chromium;
#[path = "system/dual.rs"]
mod dual;
#[path = "system/events.rs"]
mod events;
#[path = "system/faults.rs"]
mod faults;
#[path = "system/faults_of_objects.rs"]
mod faults_of_objects;
#[path = "system/gateway.rs"]
mod gateway;
#[path = "system/gateway_cost.rs"]
mod gateway_cost;
#[path = "system/jobs.rs"]
mod jobs;
#[path = "system/kill.rs"]
mod kill;
#[path = "system/kill_moments.rs"]
mod kill_moments;
#[path = "system/manifests.rs"]
mod manifests;
#[path = "system/mutual_tls.rs"]
mod mutual_tls;
#[path = "system/object_store.rs"]
mod object_store;
#[path = "system/partition.rs"]
mod partition;
#[path = "system/playlist.rs"]
mod playlist;
#[path = "system/postgres.rs"]
mod postgres;
#[path = "system/ranges.rs"]
mod ranges;
#[path = "system/ranges_lost.rs"]
mod ranges_lost;
#[path = "system/retry.rs"]
mod retry;
#[path = "system/saturation.rs"]
mod saturation;
#[path = "system/steal.rs"]
mod steal;
#[path = "system/stream.rs"]
mod stream;
#[path = "system/sync.rs"]
mod sync;
#[path = "system/telling.rs"]
mod telling;
#[path = "system/tenants.rs"]
mod tenants;
#[path = "system/up.rs"]
mod up;
#[path = "system/uploads.rs"]
mod uploads;
#[path = "system/videos.rs"]
mod videos;
#[path = "system/worker_death.rs"]
mod worker_death;
