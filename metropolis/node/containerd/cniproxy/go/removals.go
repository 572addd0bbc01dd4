// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"sync"
	"time"

	pb "metropolis/node/core/network/workloads/spec"

	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The deletion of a pod must not depend on the service: its namespace goes, and
// with it all that the service made. But a namespace that somebody keeps open
// stays, and the service would adopt what is in it when it is back. So for
// whoever asks, a removal that finds the service away or silent is a success,
// and it is tried again until it is done, for as long as this process lives:
//
//	Remove ─> attempt ─ done, refused ────────────────> returned
//	             └ away, silent ─> nil; tried again ─ done ─> logged
//	                                    └─ away, refused ─┘
//
// There is one removal of an id and path, however often it is asked for. Who
// asks again has it tried again at once, and hears what comes of that. An id
// that is set up again is removed first.
//
// Why not on disk: after a restart of containerd, kubelet or containerd itself
// removes what is left of pods; and the service keeps nothing on disk either.

const (
	// How long the service may say nothing before it is asked for its status;
	// and how long it may take to answer that. One that answers is busy.
	silence = 900 * time.Millisecond
	// Of one attempt: longer than the service waits for anything (30 s).
	attemptTimeout = 40 * time.Second
	// Between attempts, doubling. With thousands of removals under way it may
	// be longer: attempts of all together are no more often than each.
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
	retryEach  = 5 * time.Millisecond
	// Attempts at once, for a service that has just come back.
	retriesAtOnce = 8
)

type target struct{ id, path string }

// removal is one that is under way. Guarded by removals.mu but for prompt.
type removal struct {
	tried  chan struct{} // closed at the end of the attempt that comes next
	err    error         // what came of the last one
	prompt chan struct{} // holds one: try again at once
}

type removals struct {
	service  pb.WorkloadNetworkingClient
	places   chan struct{}
	patience time.Duration // with an answer to Status

	mu      sync.Mutex
	pending map[target]*removal
}

func newRemovals(conn *grpc.ClientConn) *removals {
	return &removals{
		service:  pb.NewWorkloadNetworkingClient(conn),
		places:   make(chan struct{}, retriesAtOnce),
		patience: silence,
		pending:  map[target]*removal{},
	}
}

// remove returns what came of it, and nil if the service is away or silent.
func (r *removals) remove(ctx context.Context, what target) error {
	one, tried := r.begin(ctx, what)
	for {
		select {
		case <-tried:
			if err := r.outcome(one); !isAway(err) {
				return err
			}
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(silence):
			if !r.answers(ctx) {
				log.G(ctx).Warnf("cniproxy: remove %q: the service is silent; it will be done when it answers", what.id)
				return nil
			}
		}
	}
}

// settle has the removals of an id tried before the id is set up again, since
// later they would remove what was set up. It returns why one is not done.
func (r *removals) settle(ctx context.Context, id string) error {
	r.mu.Lock()
	var earlier []target
	for what := range r.pending {
		if what.id == id {
			earlier = append(earlier, what)
		}
	}
	r.mu.Unlock()
	for _, what := range earlier {
		one, tried := r.begin(ctx, what)
		select {
		case <-tried:
			if err := r.outcome(one); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(2 * silence):
			return status.Errorf(codes.Unavailable, "an earlier removal of %q is not done yet", id)
		}
	}
	return nil
}

// begin makes a removal, or has the one that is under way tried again. It
// returns what is closed when that has been tried.
func (r *removals) begin(ctx context.Context, what target) (*removal, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.pending[what]
	if one == nil {
		one = &removal{tried: make(chan struct{}), prompt: make(chan struct{}, 1)}
		r.pending[what] = one
		// It outlives the call.
		go r.carryOut(context.WithoutCancel(ctx), what, one)
	} else {
		select {
		case one.prompt <- struct{}{}:
		default:
		}
	}
	return one, one.tried
}

func (r *removals) outcome(one *removal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return one.err
}

// longest is the longest pause between attempts.
func (r *removals) longest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(retryMost, time.Duration(len(r.pending))*retryEach)
}

func (r *removals) carryOut(ctx context.Context, what target, one *removal) {
	err := r.attempt(ctx, what)
	if !isAway(err) {
		// An answer, for whoever asked. One who is refused asks again.
		r.tell(what, one, err, true)
		return
	}
	r.tell(what, one, err, false)
	log.G(ctx).Warnf("cniproxy: remove %q: %v; it will be tried again until it is done", what.id, err)
	pause := retryFirst
	for said := err; err != nil; pause = min(2*pause, r.longest()) {
		select {
		case <-one.prompt:
		case <-time.After(pause):
		}
		r.places <- struct{}{}
		err = r.attempt(ctx, what)
		<-r.places
		hopeless := status.Code(err) == codes.InvalidArgument
		r.tell(what, one, err, err == nil || hopeless)
		if err != nil && !isAway(err) && err.Error() != said.Error() {
			log.G(ctx).Errorf("cniproxy: remove %q, since the service is back: %v", what.id, err)
			said = err
		}
		if hopeless {
			return
		}
	}
	log.G(ctx).Infof("cniproxy: remove %q: done, now that the service is back", what.id)
}

// tell lets those who wait know what came of an attempt.
func (r *removals) tell(what target, one *removal, err error, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last {
		delete(r.pending, what)
	}
	one.err = err
	close(one.tried)
	one.tried = make(chan struct{})
}

func (r *removals) attempt(ctx context.Context, what target) error {
	request := &pb.DetachRequest{WorkloadId: what.id}
	if what.path != "" {
		request.Netns = &pb.NetNSAttachment{NetnsPath: what.path}
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := r.service.Detach(ctx, request)
	return err
}

// answers tells whether the service answers at all, ready or not.
func (r *removals) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	_, err := r.service.Status(ctx, &pb.StatusRequest{Report: true})
	return err == nil
}

// isAway tells whether nobody has begun what was asked for, or whether that is
// not known: there is no service, it ends, or it had too much to do. All else
// are answers.
func isAway(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
