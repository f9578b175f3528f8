//! The filter of system calls: Docker's default profile as a BPF program.
//!
//! Why not with a library: the program must cover two architectures at once (x86-64 also takes
//! 32-bit calls, by `int 0x80`), must not set `no_new_privs`, and is paid for with every step and
//! every call. So numbers are found by bisection: at most nine comparisons, where a list takes
//! hundreds.
//!
//! What differs from Docker, each time to the safer side: x32 calls do not exist (`ENOSYS`), and
//! `socket`'s family is compared as the kernel reads it, in 32 bits.

mod asked;
mod table;
mod watched;

use libc::sock_filter;

pub use self::asked::Call;
pub use self::watched::Watched;

use self::table::Numbers;

/// `CLONE_NEW*` of mount, cgroup, uts, ipc, user, pid and network namespaces.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// Values of `personality` that change nothing dangerous, and the one that only asks.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `AF_ALG` (the kernel's cryptography) and `AF_VSOCK` (the host of a virtual machine).
const REFUSED_FAMILIES: [u32; 2] = [38, 40];
/// x32 calls have this bit in their number.
const X32: u32 = 0x4000_0000;

// Offsets in `struct seccomp_data`, little-endian as both architectures are.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0_LOW: u32 = 16;
const ARGUMENT_0_HIGH: u32 = 20;
/// From one argument to the next.
const ARGUMENT: u32 = 8;

/// `PR_SET_TIMERSLACK`, which marks processes where owners are remembered.
const SET_TIMER_SLACK: u32 = 29;
/// The bits of `open`'s flags that make a file: `O_CREAT` and `__O_TMPFILE`.
pub(super) const CREATING: u32 = 0o20_000_100;

/// What a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Docker's default.
    Docker,
    /// Docker's default, and rbuild is asked about owners and users ([`Call`]).
    DockerAsking,
    /// That, and rbuild is told of calls that look for files ([`Watched`]).
    DockerAskingWatching,
    /// Everything is allowed, but rbuild is asked about owners and users.
    Asking,
    /// Everything is allowed, but rbuild is told of calls that look for files ([`Watched`]).
    Watching,
}

/// Returns the program for the architecture that rbuild was compiled for, and for the 32-bit one
/// beside it.
pub fn filter(profile: Profile) -> Vec<sock_filter> {
    let [native, other] = ARCHITECTURES;
    filter_for(profile, native, other)
}

/// Calls that rbuild hears of, by architecture (`AUDIT_ARCH_*`) and number: looked up for every
/// question.
#[derive(Debug)]
pub struct CallTable<C>([(u32, Vec<Option<C>>); 2]);

impl<C: Copy> CallTable<C> {
    fn new<I: Iterator<Item = (u32, C)>>(calls_of: impl Fn(Numbers) -> I) -> Self {
        Self(ARCHITECTURES.map(|(architecture, numbers)| {
            let mut calls = Vec::new();
            for (number, call) in calls_of(numbers) {
                let place = number as usize;
                calls.resize(calls.len().max(place + 1), None);
                calls[place] = Some(call);
            }
            (architecture, calls)
        }))
    }

    /// The call with this number.
    pub fn get(&self, architecture: u32, number: u32) -> Option<C> {
        let (_, calls) = self.0.iter().find(|(other, _)| *other == architecture)?;
        *calls.get(number as usize)?
    }
}

impl CallTable<Call> {
    /// Those that [`Profile::DockerAsking`] asks about, on the architecture that rbuild was compiled
    /// for, and on the 32-bit one beside it.
    pub fn asked() -> Self {
        Self::new(asked::asked)
    }
}

impl CallTable<Watched> {
    /// Those that [`Profile::Watching`] tells of, and what they look for.
    pub fn watched() -> Self {
        Self::new(watched::watched)
    }
}

/// An architecture as the kernel names it (`AUDIT_ARCH_*`), and its numbers.
type Architecture = (u32, Numbers);

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [Architecture; 2] =
    [(0xc000_003e, Numbers::X86_64), (0x4000_0003, Numbers::X86)];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [Architecture; 2] =
    [(0xc000_00b7, Numbers::Aarch64), (0x4000_0028, Numbers::Arm)];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("there is no table of system calls for this architecture yet");

fn filter_for(
    profile: Profile,
    (native, native_numbers): Architecture,
    (other, other_numbers): Architecture,
) -> Vec<sock_filter> {
    let native_calls = calls(profile, native_numbers);
    let mut program = vec![load(ARCHITECTURE), jump_if_equal(native, 1, 0)];
    program.push(jump(native_calls.len()));
    program.extend(native_calls);
    program.push(jump_if_equal(other, 1, 0));
    program.push(finish(Verdict::Kill));
    program.extend(calls(profile, other_numbers));
    program
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// "Operation not permitted", Docker's answer.
    NotPermitted,
    /// "Function not implemented": the C library then tries an older call.
    NotImplemented,
    /// The process dies: the call came from an architecture that cannot be.
    Kill,
    /// rbuild answers.
    Ask,
    /// Nothing is done, and success told.
    Pretend,
}

/// What is to be done about a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Verdict(Verdict),
    Personality,
    Socket,
    Clone,
    /// Asks when the argument at this position may make a file.
    AskIfCreating {
        flags: u32,
    },
    Prctl,
}

fn calls(profile: Profile, numbers: Numbers) -> Vec<sock_filter> {
    let mut program = vec![load(NUMBER)];
    let ranges = match profile {
        Profile::Docker => docker_ranges(&docker_rules(numbers), numbers),
        Profile::DockerAsking | Profile::DockerAskingWatching => {
            let mut rules = docker_rules(numbers);
            let asking = asking_rules(numbers);
            rules.retain(|(number, _)| asking.iter().all(|(asking, _)| asking != number));
            rules.extend(asking);
            if profile == Profile::DockerAskingWatching {
                // What is not allowed stays so.
                let watched: Vec<u32> =
                    watched::watched(numbers).map(|(number, _)| number).collect();
                for (_, rule) in rules.iter_mut().filter(|(number, _)| watched.contains(number)) {
                    *rule = Rule::Verdict(Verdict::Ask);
                }
            }
            docker_ranges(&sorted(rules), numbers)
        }
        Profile::Asking => ranges(&sorted(asking_rules(numbers)), Rule::Verdict(Verdict::Allow)),
        Profile::Watching => {
            let ask = Rule::Verdict(Verdict::Ask);
            let rules = watched::watched(numbers).map(|(number, _)| (number, ask)).collect();
            ranges(&sorted(rules), Rule::Verdict(Verdict::Allow))
        }
    };
    program.extend(bisect(&ranges));
    program
}

fn asking_rules(numbers: Numbers) -> Vec<(u32, Rule)> {
    let prctl = table::number_of("prctl", numbers).map(|number| (number, Rule::Prctl));
    let asked = asked::asked(numbers).map(|(number, call)| (number, asked::rule(call)));
    asked.chain(prctl).collect()
}

fn sorted(mut rules: Vec<(u32, Rule)>) -> Vec<(u32, Rule)> {
    rules.sort_unstable_by_key(|(number, _)| *number);
    rules
}

fn docker_rules(numbers: Numbers) -> Vec<(u32, Rule)> {
    let [personality, socket, clone, clone3] = table::special(numbers);
    let rules = table::allowed(numbers)
        .map(|number| (number, Rule::Verdict(Verdict::Allow)))
        .chain([
            (personality, Rule::Personality),
            (socket, Rule::Socket),
            (clone, Rule::Clone),
            (clone3, Rule::Verdict(Verdict::NotImplemented)),
        ])
        .collect();
    sorted(rules)
}

/// Returns where each range of numbers with one rule starts; it ends where the next one does.
/// Numbers without a rule of their own have the one for `others`.
fn ranges(rules: &[(u32, Rule)], others: Rule) -> Vec<(u32, Rule)> {
    let mut ranges = vec![(0, others)];
    let mut add = |start: u32, rule: Rule| {
        let (last_start, last_rule) = *ranges.last().expect("it starts with one");
        if last_start == start {
            ranges.pop();
        } else if last_rule == rule {
            return;
        }
        if ranges.last().map(|(_, rule)| *rule) != Some(rule) {
            ranges.push((start, rule));
        }
    };
    for (number, rule) in rules {
        add(*number, *rule);
        add(number + 1, others);
    }
    ranges
}

fn docker_ranges(rules: &[(u32, Rule)], numbers: Numbers) -> Vec<(u32, Rule)> {
    let mut ranges = ranges(rules, Rule::Verdict(Verdict::NotPermitted));
    // Calls newer than the table do not exist, so that programs fall back to older ones.
    let newest = rules.iter().map(|(number, _)| *number).filter(|number| *number < 0x1000).max();
    let newer = newest.expect("there are calls") + 1;
    let position = ranges.iter().position(|(start, _)| *start >= newer).unwrap_or(ranges.len());
    let private = ranges.split_off(position);
    ranges.push((newer, Rule::Verdict(Verdict::NotImplemented)));
    ranges.extend(private.into_iter().filter(|(start, _)| *start > newer));
    if numbers == Numbers::X86_64 {
        ranges.push((X32, Rule::Verdict(Verdict::NotImplemented)));
    }
    ranges
}

fn bisect(ranges: &[(u32, Rule)]) -> Vec<sock_filter> {
    match ranges {
        [] => Vec::new(),
        [(_, rule)] => rule.program(),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let (lower_program, upper_program) = (bisect(lower), bisect(upper));
            let start = upper[0].0;
            let mut program = match u8::try_from(lower_program.len()) {
                Ok(distance) => vec![jump_if_at_least(start, distance, 0)],
                Err(_) => vec![jump_if_at_least(start, 0, 1), jump(lower_program.len())],
            };
            program.extend(lower_program);
            program.extend(upper_program);
            program
        }
    }
}

impl Rule {
    fn program(self) -> Vec<sock_filter> {
        match self {
            Self::Verdict(verdict) => vec![finish(verdict)],
            Self::Personality => {
                let mut program = vec![
                    load(ARGUMENT_0_HIGH),
                    jump_if_equal(0, 1, 0),
                    finish(Verdict::NotPermitted),
                    load(ARGUMENT_0_LOW),
                ];
                program.extend(one_of(&PERSONALITIES, Verdict::Allow, Verdict::NotPermitted));
                program
            }
            Self::Socket => {
                let mut program = vec![load(ARGUMENT_0_LOW)];
                program.extend(one_of(&REFUSED_FAMILIES, Verdict::NotPermitted, Verdict::Allow));
                program
            }
            Self::Clone => vec![
                load(ARGUMENT_0_LOW),
                jump_if_any_bit(NEW_NAMESPACES, 0, 1),
                finish(Verdict::NotPermitted),
                finish(Verdict::Allow),
            ],
            Self::AskIfCreating { flags } => vec![
                load(ARGUMENT_0_LOW + flags * ARGUMENT),
                jump_if_any_bit(CREATING, 0, 1),
                finish(Verdict::Ask),
                finish(Verdict::Allow),
            ],
            Self::Prctl => vec![
                load(ARGUMENT_0_LOW),
                jump_if_equal(SET_TIMER_SLACK, 0, 1),
                finish(Verdict::Pretend),
                finish(Verdict::Allow),
            ],
        }
    }
}

fn one_of(values: &[u32], then: Verdict, otherwise: Verdict) -> Vec<sock_filter> {
    let mut program: Vec<_> =
        values.iter().flat_map(|value| [jump_if_equal(*value, 0, 1), finish(then)]).collect();
    program.push(finish(otherwise));
    program
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn jump(distance: usize) -> sock_filter {
    let distance = u32::try_from(distance).expect("programs have at most 4096 instructions");
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, distance)
}

fn jump_if_equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, then, otherwise, value)
}

fn jump_if_at_least(value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, then, otherwise, value)
}

fn jump_if_any_bit(bits: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, then, otherwise, bits)
}

fn finish(verdict: Verdict) -> sock_filter {
    let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let value = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::NotPermitted => errno(libc::EPERM),
        Verdict::NotImplemented => errno(libc::ENOSYS),
        Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        Verdict::Ask => libc::SECCOMP_RET_USER_NOTIF,
        Verdict::Pretend => errno(0),
    };
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes are small"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: u32 = 0xc000_003e;
    const OTHER: u32 = 0x4000_0003;

    /// Runs the program for x86-64 as the kernel does, on a call with one argument.
    fn run(profile: Profile, architecture: u32, number: u32, arguments: [u64; 3]) -> u32 {
        let program = filter_for(profile, (NATIVE, Numbers::X86_64), (OTHER, Numbers::X86));
        let argument = arguments[0];
        let low = u32::try_from(argument & 0xffff_ffff).unwrap();
        let high = u32::try_from(argument >> 32).unwrap();
        let (mut position, mut register) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[position];
            position += 1;
            let branch = |taken| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    register = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        ARGUMENT_0_LOW => low,
                        ARGUMENT_0_HIGH => high,
                        24 | 32 => {
                            let index = (k - ARGUMENT_0_LOW) / ARGUMENT;
                            u32::try_from(arguments[index as usize]).unwrap()
                        }
                        _ => panic!("loads {k}"),
                    }
                }
                code if code == libc::BPF_JMP | libc::BPF_JA => position += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => position += branch(register == k),
                code if code == libc::BPF_JMP | libc::BPF_JGE => position += branch(register >= k),
                code if code == libc::BPF_JMP | libc::BPF_JSET => {
                    position += branch(register & k != 0);
                }
                code if code == libc::BPF_RET => return k,
                code => panic!("code {code}"),
            }
        }
    }

    fn check((architecture, number, argument): (u32, u32, u64), expected: Verdict) {
        assert_eq!(
            run(Profile::Docker, architecture, number, [argument, 0, 0]),
            finish(expected).k,
            "call {number} with {argument:#x} on {architecture:#x}"
        );
    }

    #[test]
    fn every_number_has_the_verdict_of_the_table() {
        for (architecture, numbers) in [(NATIVE, Numbers::X86_64), (OTHER, Numbers::X86)] {
            let allowed: Vec<_> = table::allowed(numbers).collect();
            let special = table::special(numbers);
            for number in (0..600).filter(|number| !special.contains(number)) {
                let expected = if allowed.contains(&number) {
                    Verdict::Allow
                } else if number > 466 {
                    Verdict::NotImplemented
                } else {
                    Verdict::NotPermitted
                };
                check((architecture, number, 0), expected);
            }
        }
    }

    #[test]
    fn new_namespaces_are_refused() {
        check((NATIVE, 56, 17), Verdict::Allow);
        check((NATIVE, 56, 0x1000_0011), Verdict::NotPermitted);
        check((NATIVE, 56, 0x2_0000), Verdict::NotPermitted);
        check((OTHER, 120, 0x4000_0000), Verdict::NotPermitted);
        check((NATIVE, 435, 0), Verdict::NotImplemented);
        check((NATIVE, 272, 0), Verdict::NotPermitted);
    }

    #[test]
    fn only_harmless_personalities_and_sockets_are_allowed() {
        check((NATIVE, 135, 0xffff_ffff), Verdict::Allow);
        check((NATIVE, 135, 0x2_0008), Verdict::Allow);
        check((NATIVE, 135, 0x4_0000), Verdict::NotPermitted);
        check((NATIVE, 135, 0x1_0000_0000), Verdict::NotPermitted);
        check((NATIVE, 41, 1), Verdict::Allow);
        check((NATIVE, 41, 39), Verdict::Allow);
        check((NATIVE, 41, 38), Verdict::NotPermitted);
        check((NATIVE, 41, 0x1_0000_0026), Verdict::NotPermitted);
        check((OTHER, 359, 40), Verdict::NotPermitted);
    }

    #[test]
    fn other_architectures_have_no_way_in() {
        check((NATIVE, X32 | 1, 0), Verdict::NotImplemented);
        check((0xc000_00b7, 1, 0), Verdict::Kill);
    }

    #[test]
    fn programs_are_short_enough() {
        for profile in [Profile::Docker, Profile::DockerAskingWatching, Profile::Asking] {
            let x86 = filter_for(profile, (NATIVE, Numbers::X86_64), (OTHER, Numbers::X86));
            let arm = (0x4000_0028, Numbers::Arm);
            let arm = filter_for(profile, (0xc000_00b7, Numbers::Aarch64), arm);
            assert!(x86.len() < 1200 && arm.len() < 1200, "{} {}", x86.len(), arm.len());
        }
    }

    #[test]
    fn questions_are_about_owners_and_users_only() {
        let check = |architecture, number, arguments, expected| {
            for profile in [Profile::DockerAsking, Profile::Asking] {
                let verdict = run(profile, architecture, number, arguments);
                assert_eq!(verdict, finish(expected).k, "{profile:?}: {number} {arguments:?}");
            }
        };
        let (read_only, create) = (0, 0o101);
        let temporary = 0o20_200_002;
        check(NATIVE, 92, [0, 0, 0], Verdict::Ask);
        check(NATIVE, 102, [0, 0, 0], Verdict::Ask);
        check(NATIVE, 332, [0, 0, 0], Verdict::Ask);
        check(NATIVE, 0, [0, 0, 0], Verdict::Allow);
        check(NATIVE, 2, [0, read_only, create], Verdict::Allow);
        check(NATIVE, 2, [0, create, 0], Verdict::Ask);
        check(NATIVE, 257, [0, create, read_only], Verdict::Allow);
        check(NATIVE, 257, [0, 0, create], Verdict::Ask);
        check(NATIVE, 257, [0, 0, temporary], Verdict::Ask);
        check(NATIVE, 257, [0, 0, 0o200_000], Verdict::Allow);
        check(NATIVE, 157, [29, 1, 0], Verdict::Pretend);
        check(NATIVE, 157, [15, 0, 0], Verdict::Allow);
        check(OTHER, 212, [0, 0, 0], Verdict::Ask);
        // 16-bit ids.
        check(OTHER, 182, [0, 0, 0], Verdict::Allow);
        // Everything else is as it was.
        let reboot = [0, 0, 0];
        assert_eq!(
            run(Profile::DockerAsking, NATIVE, 169, reboot),
            finish(Verdict::NotPermitted).k
        );
        assert_eq!(run(Profile::Asking, NATIVE, 169, reboot), finish(Verdict::Allow).k);
        for number in 0..600 {
            let asks =
                run(Profile::Asking, NATIVE, number, [0, create, create]) == finish(Verdict::Ask).k;
            let known = asked::asked(Numbers::X86_64).any(|(other, _)| other == number);
            assert_eq!(asks, known, "{number}");
        }
    }

    #[test]
    fn who_watches_hears_of_what_is_looked_for_and_allows_no_more() {
        let check = |number, expected| {
            let verdict = run(Profile::DockerAskingWatching, NATIVE, number, [0, 0, 0]);
            assert_eq!(verdict, finish(expected).k, "{number}");
        };
        // open, openat, access, readlink; chown; read; reboot, open_by_handle_at
        for number in [2, 257, 21, 89, 92] {
            check(number, Verdict::Ask);
        }
        check(0, Verdict::Allow);
        check(169, Verdict::NotPermitted);
        check(304, Verdict::NotPermitted);
        let watched = CallTable::watched();
        assert_eq!(watched.get(NATIVE, 257).map(|call| call.opens), Some(true));
        assert_eq!(watched.get(NATIVE, 0), None);
    }

    #[test]
    fn every_name_that_is_asked_about_exists() {
        assert_eq!(asked::asked(Numbers::X86_64).count(), 38);
        let asked = CallTable::asked();
        let (architecture, numbers) = ARCHITECTURES[0];
        for (number, call) in asked::asked(numbers) {
            assert_eq!(asked.get(architecture, number), Some(call));
        }
        assert_eq!(asked.get(architecture, 0xffff), None);
        // Without the calls that have a successor with a folder.
        assert_eq!(asked::asked(Numbers::Aarch64).count(), 29);
        assert_eq!(asked::asked(Numbers::X86).count(), 34);
        assert_eq!(asked::asked(Numbers::Arm).count(), 34);
    }
}
