// @ts-check
// Starts the parts of the page that this listener offers, and follows the address: `#job/ID` opens a job.

import { byId } from "./elements.js";
import { openJob } from "./job.js";
import { startJobs } from "./jobs.js";
import { playerAddress } from "./player.js";
import { startPools } from "./pools.js";
import { startSign } from "./sign.js";
import { startSubmit } from "./submit.js";

const parts = (document.documentElement.dataset.parts ?? "").split(" ");

if (!playerAddress()) document.querySelector("[data-licence]")?.remove();

/** What is asked again when who asks has changed. @type {(() => void)[]} */
const again = [];
startSign(() => again.forEach((look) => look()));
if (parts.includes("jobs")) {
  const jobs = startJobs();
  again.push(jobs.refresh);
  const openFromAddress = () => {
    // A job's id has no character that an address would have to escape.
    const id = /^#job\/([\w.-]+)$/.exec(location.hash)?.[1] ?? null;
    // The other addresses are places of the page, and going there closes nothing.
    if (id == null && location.hash) return;
    const panel = byId("job");
    const [before, at] = [panel.dataset.jobId, document.activeElement];
    const [fromList, fromPanel] = [jobs.has(at), panel.contains(at)];
    openJob(id, () => jobs.refresh());
    jobs.mark(id);
    // With the keyboard, one goes along: into the panel that stands before the list, and back to where one was.
    if (id != null && fromList) panel.focus({ preventScroll: true });
    if (id == null && before != null && fromPanel) jobs.focus(before);
  };
  window.addEventListener("hashchange", openFromAddress);
  openFromAddress();
  startSubmit({
    accepted(job) {
      jobs.refresh();
      // Who sends one video wants to see what becomes of it; who sends many, or watches another, is left alone.
      if (byId("job").hidden) location.hash = `#job/${job.job_id}`;
    },
  });
}
if (parts.includes("pools")) again.push(startPools());
